"""The fleet's status as one self-contained HTML page: no script, font or image from elsewhere."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from ..module_utils.boot_report import moment
from ..module_utils.wording import short, span
from ..plugin_utils.pages import render

DOCUMENTATION = r"""
name: status_page
short_description: Status of the fleet as one HTML page
version_added: 0.2.0
description: The page is sortable and filterable. Everything that came from a node is escaped.
positional: now
options:
  _input:
    description: What P(attnkit.fleet.outcome_rows#filter) returns.
    type: list
    elements: dict
    required: true
  now:
    description: The time of the page, RFC 3339 in UTC. The default is the present.
    type: str
author:
  - The attnkit authors
"""

EXAMPLES = r"""
- name: Write the page
  ansible.builtin.copy:
    dest: status.html
    content: "{{ hostvars | attnkit.fleet.outcome_rows(ansible_play_hosts_all) | attnkit.fleet.status_page }}"
    mode: "0644"
"""

RETURN = r"""
_value:
  description: The page.
  type: str
"""

COLUMNS = ("node", "type", "state", "backend", "provider", "tokens/s", "report age", "image", "driver")
NUMBERS = ("tokens/s", "report age")
TONES = {"pass": "good", "fail": "bad"}


def status_page(rows: Sequence[Mapping[str, Any]], now: str | None = None) -> str:
    """The page.

    Args:
        rows: a row a node, as `outcome_rows` makes them.
        now: the time of the page.
    """
    time = moment(now) if now else datetime.datetime.now(tz=datetime.timezone.utc)
    shown = [_row(row, time) for row in rows]
    # What needs attention comes first; the reader may sort otherwise.
    shown.sort(key=lambda row: (row["serves"], row["type"], row["node"]))
    types = sorted({row["type"] for row in shown})
    return render(
        "status.html.j2",
        rows=shown,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        serving=sum(row["serves"] for row in shown),
        trouble=sum(not row["serves"] for row in shown),
        types=[
            {
                "name": name,
                "nodes": sum(row["type"] == name for row in shown),
                "serving": sum(row["type"] == name and row["serves"] for row in shown),
            }
            for name in types
        ],
        verdicts=sorted({row["verdict"] for row in shown}),
        columns=[{"title": title, "number": title in NUMBERS} for title in COLUMNS],
    )


def _row(row: Mapping[str, Any], now: datetime.datetime) -> dict[str, Any]:
    """What the page shows of one node."""
    age = (now - moment(row["created"])).total_seconds() if row.get("created") else None
    serves = bool(row["serves"])
    verdict = str(row.get("verdict") or "no report")
    notes = [f"fell back: {step}" for step in row.get("fallbacks") or []]
    if row.get("planted_fault"):
        notes.append(f"the fault {row['planted_fault']!r} was injected on purpose")
    if row.get("planted_answer"):
        notes.append(f"no kernel ran: the device was simulated, answer {row['planted_answer']!r}")
    return {
        **{
            name: row.get(name)
            for name in ("node", "backend", "provider", "driver", "device", "tokens_per_s", "created", "reason")
        },
        "type": str(row.get("type") or "unknown"),
        "verdict": verdict,
        "serves": serves,
        "tone": "good" if serves else "bad",
        "verdict_tone": TONES.get(verdict, "odd"),
        "rank": f"{int(serves)} {verdict}",
        "notes": notes,
        "age": age,
        "age_text": None if age is None else span(age),
        "image": row.get("image") or "",
        "image_text": short(row.get("image") or ""),
    }


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, Any]:
        """Name and function."""
        return {"status_page": status_page}
