"""The plan of a run: what would change on which node, in which order, and what speaks against it.

Whatever a node said is made printable and cut before it gets into a plan, which goes to a terminal, a page and a JSON file.
"""

from __future__ import annotations

import functools
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.utils.helpers import pct_to_int
from ansible_collections.attnkit.fleet.plugins.module_utils.boot_report import listed, part
from ansible_collections.attnkit.fleet.plugins.module_utils.wording import printable

from attnkit import profiles

from . import terminal

MAX_TEXT = 300
MAX_CELL = 60
MAX_NAMES = 120
DIGITS = 7
"""Of a digest, in the tables."""
HOOKS = ("attnkit_drain_command", "attnkit_drain_tasks", "attnkit_serve_command", "attnkit_serve_tasks")
COLUMNS = {
    "node": "wrap", "type": "wrap", "devices": "keep", "from": "keep", "to": "keep", "1st choice": "wrap", "batch": "keep",
    "drain": "keep", "changes": "wrap",
}  # fmt: skip


def text(value: Any) -> str:
    """What may be from a node, as a text that is safe to show."""
    return printable("" if value is None else value)[:MAX_TEXT]


def digest(image: str) -> str:
    """A release in a table: the first digits of its image's digest."""
    return image.partition("@sha256:")[2][:DIGITS] or image[-DIGITS:] or "-"


@functools.cache
def expected_backend(node_type: str) -> str:
    """The first choice of the node type's profile, empty if there is none: the boot may fall back along the profile's chain."""
    return profiles.load_node(node_type).backends[0] if node_type in profiles.node_names() else ""


def devices(fact: Mapping[str, Any]) -> str:
    """How many devices a node was detected with, those that its type stands for: 8x sm_90."""
    found = listed(fact.get("detection"), "devices")
    own = [device for device in found if device.get("vendor") == fact.get("vendor")] or found
    counts = Counter(text(device.get("arch")).partition(":")[0][:12] for device in own[:256])
    return ", ".join(f"{count}x {arch}" if count > 1 else arch for arch, count in counts.items())[:24]


def differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any], service: Any) -> list[str]:
    """What a rollout would change on a node, in words; empty if it runs what is wanted.

    Args:
        recorded: the release that the node's record states, empty if it has none.
        wanted: the release of the inventory.
        service: what the preflight saw of the container, None if there is none.
    """
    if not recorded:
        return ["install"]
    found = [name for name in ("image", "command", "port", "platform") if recorded.get(name) != wanted.get(name)]
    if recorded.get("node_type") != wanted.get("node_type"):
        found.append(f"type was {text(recorded.get('node_type'))[:40]}")
    env, new = part(recorded, "env"), part(wanted, "env")
    if names := sorted(text(name) for name in {*env, *new} if env.get(name) != new.get(name)):
        found.append(f"env {', '.join(names)[:MAX_TEXT]}")
    if (recorded.get("secret_env") or []) != (wanted.get("secret_env") or []):
        found.append("names of secrets")
    if not found and not part({"s": service}, "s").get("running"):
        found.append("start")
    if not found and part({"s": service}, "s").get("image") != wanted.get("image"):
        found.append("image")
    return found


def steps(first: Sequence[str], rest: Sequence[str], batches: Sequence[str], of: int) -> dict[str, str]:
    """The step in which every node is changed, in their order; the batches as Ansible's `serial` makes them.

    Args:
        first: the nodes that go one at a time.
        rest: the nodes in batches.
        batches: sizes or percentages; the last one is repeated.
        of: the number of nodes that 100% is.
    """
    made = dict.fromkeys(first, "canary")
    left = list(rest)
    sizes = [pct_to_int(share, of) for share in batches] or [of]
    number = 0
    while left:
        size = max(1, sizes[min(number, len(sizes) - 1)])
        number += 1
        made |= dict.fromkeys(left[:size], f"batch {number}")
        left = left[size:]
    return made


def row(
    host: str,
    seen: Mapping[str, Any],
    step: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    changes: Sequence[str],
    why: str = "",
) -> dict[str, Any]:
    """One node of a plan.

    Args:
        host: its name in the inventory.
        seen: its variables.
        step: when its turn is; empty for never.
        before: the release that it has.
        after: the release that it would have.
        changes: what differs, in words.
        why: nothing changes, where there is more to say.
    """
    fact = part(seen.get("ansible_facts"), "attnkit")
    node_type = text(fact.get("node_type") or after.get("node_type") or before.get("node_type"))
    given = part(after, "env").get("ATTNKIT_BACKEND")
    return {
        "node": text(host),
        "type": node_type,
        "type_source": text(fact.get("node_type_source")),
        "devices": devices(fact),
        "from": text(before.get("image")),
        "to": text(after.get("image")),
        "backend": text(given) or expected_backend(node_type),
        "backend_source": "inventory" if text(given) else "profile",  # what serves is in the boot report
        "step": step,
        "drain": bool(changes) and any(seen.get(name) for name in HOOKS),
        "changes": [text(change) for change in changes],
        "why": text(why),
    }


def causes(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The findings that are not ok, those of the same cause together: what differs in its numbers alone is the same cause."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for each in findings:
        if each.get("ok"):
            continue
        check, detail = text(each.get("check")), text(each.get("detail"))
        cause = found.setdefault(
            (check, re.sub(r"\d+", "#", detail)), {"check": check, "detail": detail, "nodes": [], "alike": False}
        )
        cause["alike"] |= detail != cause["detail"]
        cause["nodes"].append(text(each.get("node")))
    return list(found.values())


def objection_lines(document: Mapping[str, Any]) -> list[str]:
    """Every cause in one line."""
    return [
        f"{terminal.folded(cause['nodes'])}: {cause['check']}: {cause['detail']}"
        + (f" ({cause['nodes'][0]}; on the others with other numbers)" if cause["alike"] else "")
        for cause in document["objections"]
    ]


def headline(document: Mapping[str, Any]) -> str:
    """What the run would do, in a sentence."""
    nodes = document["nodes"]
    changing = [node for node in nodes if node["changes"]]
    sizes = Counter(node["step"] for node in nodes if node["step"].startswith("batch"))
    first = sum(node["step"] == "canary" for node in nodes)
    order = [f"{first} {'canary' if first == 1 else 'canaries, one at a time'}"] if first else []
    if sizes:
        order.append(f"{'a batch' if len(sizes) == 1 else 'batches'} of {', '.join(map(str, sizes.values()))}")
    shown = f"{document['kind']}: {len(changing)} of {len(nodes)} nodes change"
    return f"{shown}; {', then '.join(order)}" if order else shown


def lines(document: Mapping[str, Any], width: int = terminal.WIDTH) -> list[str]:
    """The plan for a terminal: nodes of which all is the same share a line, in the order of the run."""
    shared: dict[tuple[str, ...], list[str]] = {}
    domain = common_domain([node["node"] for node in document["nodes"]])
    for node in sorted(document["nodes"], key=turn):
        cells = (
            node["type"][:MAX_CELL] or "unknown",
            node["devices"] or "-",
            digest(node["from"]),
            digest(node["to"]),
            node["backend"][:MAX_CELL] or "-",
            node["step"].removeprefix("batch ") or "-",
            "yes" if node["drain"] else "no",
            textwrap.shorten(", ".join(node["changes"]) or node["why"] or "nothing", MAX_CELL, placeholder=" …"),
        )
        shared.setdefault(cells, []).append(node["node"].removesuffix(domain))
    made = terminal.wrapped(headline(document), width)
    made += ["", *terminal.table([(_names(names), *cells) for cells, names in shared.items()], COLUMNS, width), ""]
    if document["objections"]:
        count = len({name for cause in document["objections"] for name in cause["nodes"]})
        made.append(f"objections on {count} {'node' if count == 1 else 'nodes'}; nothing is changed until they are gone:")
        for line in objection_lines(document):
            made += terminal.wrapped(f"  {line}", width)
    else:
        made.append("no objections")
    return made


def _names(names: Sequence[str]) -> str:
    """Names that share a line; the page has all of them."""
    shown = terminal.folded(names)
    return shown if len(shown) <= MAX_NAMES else f"{shown[:MAX_NAMES]}… ({len(names)} nodes)"


def common_domain(names: Sequence[str]) -> str:
    """The domain that all nodes are in, with its dot; empty if there is none. A table is narrower without it."""
    domains = {dot + rest for _, dot, rest in (name.partition(".") for name in names)}
    return domains.pop() if len(domains) == 1 and len(names) > 1 else ""


def turn(node: Mapping[str, Any]) -> tuple[int, int]:
    """For sorting: canaries first, then the batches by number, then what has no turn."""
    step = node["step"]
    return (0 if step == "canary" else 1 if step else 2, int("0" + re.sub(r"\D", "", step)))
