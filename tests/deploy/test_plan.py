"""The plan of a run: one table of 80 columns, the causes against it, the same as data and as a page; then what a run shows."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.attnkit.fleet.plugins.action import attnkit_plan
from ansible_collections.attnkit.fleet.plugins.module_utils.wording import elapsed
from ansible_collections.attnkit.fleet.plugins.plugin_utils import plan, terminal
from rich.cells import cell_len

from .conftest import FAILED, NEW, OLD, PASSED

HOSTILE = "\x1b]0;owned\x07\x1b[2Jgone\r\n\u202e<script>alert(1)</script>{{ 7 * 191 }}[bold]"
OK = {"check": "disk", "ok": True, "detail": "71.2 GiB free"}


def _release(image: str = OLD, **changes: Any) -> dict[str, Any]:
    release = {"image": image, "platform": "cuda-ampere", "node_type": "h100", "command": ["x"], "port": 8000, "env": {}}
    return {**release, **changes}


def _seen(recorded: Any = None, wanted: Any = None, findings: Any = (OK,), **changes: Any) -> dict[str, Any]:
    """What the controller has of a node once the preflight is over."""
    detection = {"devices": [{"vendor": "nvidia", "arch": "sm_90"}] * 8 + [{"vendor": "cpu", "arch": "x86_64"}]}
    fact = {"node_type": "h100", "node_type_source": "detected", "vendor": "nvidia", "detection": detection}
    proposed = {"recorded": recorded or {}, "wanted": wanted or _release(NEW), "service": {"running": True, "image": OLD}}
    return {
        "ansible_facts": {"attnkit": fact},
        "attnkit_proposed": proposed,
        "attnkit_findings": list(findings),
        **changes,
    }


def _document(fleet: dict[str, dict[str, Any]], batches: tuple[str, ...] = ("10%", "50%", "100%")) -> dict[str, Any]:
    made = attnkit_plan.rollout(fleet, list(fleet), batches)
    return {"schema_version": 1, "kind": "rollout", "created": "2026-06-01T12:00:00Z", "check": True, **made}


def _fleet(count: int, name: str = "gpu-{}") -> dict[str, dict[str, Any]]:
    return {name.format(i): _seen(_release()) for i in range(1, count + 1)}


def test_a_person_reads_it() -> None:
    fleet = _fleet(20)
    fleet["gpu-7"] = _seen(_release(NEW), attnkit_drain_command=["drain"])
    fleet["gpu-7"]["attnkit_proposed"]["service"]["image"] = NEW
    fleet["gpu-9"]["attnkit_drain_tasks"] = "/drain.yml"
    assert plan.lines(_document(fleet)) == [
        "rollout: 19 of 20 nodes change; 1 canary, then batches of 1, 9, 9",
        "",
        "node              type devices  from    to      1st choice batch  drain changes",
        "gpu-1             h100 8x sm_90 aaaaaaa bbbbbbb FLASH_ATTN canary no    image",
        "gpu-2             h100 8x sm_90 aaaaaaa bbbbbbb FLASH_ATTN 1      no    image",
        "gpu-[3-6,8,10-11] h100 8x sm_90 aaaaaaa bbbbbbb FLASH_ATTN 2      no    image",
        "gpu-7             h100 8x sm_90 bbbbbbb bbbbbbb FLASH_ATTN 2      no    nothing",
        "gpu-9             h100 8x sm_90 aaaaaaa bbbbbbb FLASH_ATTN 2      yes   image",
        "gpu-[12-20]       h100 8x sm_90 aaaaaaa bbbbbbb FLASH_ATTN 3      no    image",
        "",
        "no objections",
    ]


def test_a_node_that_its_inventory_forces_to_a_backend() -> None:
    made = _document({"a": _seen(wanted=_release(NEW, env={"ATTNKIT_BACKEND": "FLASHINFER"}))})
    (node,) = made["nodes"]
    assert (node["backend"], node["backend_source"], node["changes"]) == ("FLASHINFER", "inventory", ["install"])
    (usual,) = _document(_fleet(1))["nodes"]
    assert (usual["backend"], usual["backend_source"]) == ("FLASH_ATTN", "profile")


@pytest.mark.parametrize(
    "name",
    ["gpu-{}", "gpu-{}.rack-12.row-7.frankfurt.example.org", "節点-{0}-非常に長い名前" * 3, "n{}" + HOSTILE, "x" * 300 + "{}"],
    ids=["short", "domain", "wide", "hostile", "long"],
)  # fmt: skip
def test_it_fits_80_columns(name: str) -> None:
    """100 nodes of two types, a tenth with objections, and whatever names."""
    fleet = _fleet(100, name)
    for i, seen in enumerate(fleet.values()):
        if i >= 50:
            fact = seen["ansible_facts"]["attnkit"]
            fact |= {"node_type": "mi300x", "detection": {"devices": [{"vendor": "amd", "arch": "gfx942:sramecc+:xnack-"}] * 8}}
            seen["attnkit_proposed"]["wanted"] |= {"env": {f"VARIABLE_{n}": "1" for n in range(9)}}
        if i % 10 == 0:
            seen["attnkit_findings"] = [OK, {"check": "disk", "ok": False, "detail": f"{i}.1 GiB free of 100 needed, " * 5}]
    made = _document(fleet)
    lines = plan.lines(made)
    assert max(map(cell_len, lines)) <= 79
    assert all(c.isprintable() for line in lines for c in line)
    assert len(made["nodes"]) == 100 and len(made["objections"]) == 1
    assert lines[0].startswith("rollout: 100 of 100 nodes change; 2 canaries, one at a time, then batches")
    if name == "gpu-{}":
        assert len(lines) < 60, "nodes of which all is the same share a line"


@pytest.mark.parametrize("text", [HOSTILE, ["x"], {"a": 1}, 7, None, True], ids=str)
def test_what_a_node_says_is_shown_as_text(text: Any) -> None:
    """A node may claim anything: of any kind, anywhere."""
    hostile = {
        "image": text,
        "platform": text,
        "node_type": text,
        "command": text,
        "port": text,
        "env": text,
        "secret_env": text,
    }
    fact = {"node_type": text, "vendor": text, "platform": text, "detection": {"devices": [{"arch": text}, text]}}
    finding = {"check": text, "ok": False, "detail": text}
    seen = _seen(hostile, findings=[finding], ansible_facts={"attnkit": fact}, attnkit_machine="m")
    seen["attnkit_proposed"]["service"] = text
    fleet = {
        "good": _seen(_release(), attnkit_machine="n"),
        "bad": seen,
        "odd": {"attnkit_proposed": text, "ansible_facts": text},
    }
    made = _document(fleet)
    said = "\n".join(plan.lines(made))
    assert all(c.isprintable() or c == "\n" for c in said + json.dumps(made, ensure_ascii=False))
    page = plan_page(made)
    assert not page.scripts and not page.foreign and len(page.rows) == 3
    assert page.rows[0][0] == "good"


class _Page(html.parser.HTMLParser):
    """Cells by row, the scripts, and what comes from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.scripts = 0
        self.foreign: list[str | None] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.foreign += [value for name, value in attrs if name in ("src", "href") or name.startswith("on")]
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def plan_page(document: dict[str, Any]) -> _Page:
    page = _Page(attnkit_plan.render("plan.html.j2", **document, title="x", columns=plan.COLUMNS, digest=plan.digest))
    page.rows = page.rows[1:]
    return page


def test_the_page_has_every_node_and_every_cause() -> None:
    fleet = _fleet(3)
    fleet["gpu-2"]["attnkit_findings"] = [{"check": "disk", "ok": False, "detail": "<b>full</b>"}]
    page = plan_page(_document(fleet))
    assert page.rows[0] == ["gpu-1", "h100", "8x sm_90", "aaaaaaa", "bbbbbbb", "FLASH_ATTN", "canary", "no", "image"]
    assert [row[0] for row in page.rows] == ["gpu-1", "gpu-2", "gpu-3"]
    assert "<b>full</b>" in page.text


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["gpu-1"], "gpu-1"),
        (["gpu-2", "gpu-1", "gpu-4"], "gpu-[1-2,4]"),
        (["n08.example", "n09.example", "n10.example", "n100.example"], "n[08-10].example, n100.example"),
        (["10.0.0.5", "10.0.0.6"], "10.0.0.[5-6]"),
        (["b", "a", "b"], "b, a"),
        (["n" + "9" * 40, "n1"], "n" + "9" * 40 + ", n1"),
        ([], ""),
    ],
)  # fmt: skip
def test_names_are_folded_as_slurm_does(names: list[str], text: str) -> None:
    assert terminal.folded(names) == text


def test_batches_are_those_of_the_playbook() -> None:
    rest = [f"n{i}" for i in range(13)]
    made = plan.steps(["a", "b"], rest, ("10%", "50%", "100%"), len(rest))
    assert list(made) == ["a", "b", *rest]
    assert [list(made.values()).count(step) for step in ("canary", "batch 1", "batch 2", "batch 3")] == [2, 1, 6, 6]
    back = plan.steps(rest[:1], rest[1:], ("25%",), len(rest))
    assert [list(back.values()).count(f"batch {n}") for n in range(1, 6)] == [3, 3, 3, 3, 0]


@pytest.mark.parametrize(
    ("recorded", "wanted", "service", "changes"),
    [
        ({}, _release(NEW), None, ["install"]),
        (_release(), _release(), {"running": True, "image": OLD}, []),
        (_release(), _release(), {"running": False, "image": OLD}, ["start"]),
        (_release(), _release(), None, ["start"]),
        (_release(), _release(), {"running": True, "image": NEW}, ["image"]),
        (_release(), _release(NEW), {"running": True, "image": OLD}, ["image"]),
        (_release(env={"A": "1", "B": "2"}), _release(env={"B": "3", "C": "4"}), None, ["env A, B, C"]),
        (_release(), _release(command=["y"], port=8001), None, ["command", "port"]),
        (_release(node_type="a100"), _release(), None, ["type was a100"]),
        (_release(), _release(secret_env=["TOKEN"]), None, ["names of secrets"]),
    ],
)  # fmt: skip
def test_what_would_change(recorded: Any, wanted: Any, service: Any, changes: list[str]) -> None:
    assert plan.differences(recorded, wanted, service) == changes


def test_nodes_that_share_a_cause_share_a_line() -> None:
    fleet = _fleet(6)
    for i in (1, 2, 3):
        fleet[f"gpu-{i}"]["attnkit_findings"] = [{"check": "disk", "ok": False, "detail": f"{i}.3 GiB free, 9.0 GiB needed"}]
    fleet["gpu-4"] = fleet["gpu-6"] = {}
    made = _document(fleet)
    assert plan.objection_lines(made) == [
        "gpu-[1-3]: disk: 1.3 GiB free, 9.0 GiB needed (gpu-1; on the others with other numbers)",
        "gpu-[4,6]: reachable: no answer",
    ]
    assert "objections on 5 nodes; nothing is changed until they are gone:" in plan.lines(made)
    assert (made["nodes"][3]["step"], made["nodes"][3]["why"]) == ("", "not known: no answer"), "it has no turn"


def test_the_plan_of_a_rollback() -> None:
    new, old = _release(NEW), _release(OLD)
    fleet = {
        "a": {"attnkit_recorded": {"release": new, "previous": old}},
        "b": {"attnkit_recorded": {"release": old, "previous": new, "left": NEW}},
        "c": {"attnkit_recorded": {"release": new, "previous": None}},
        "d": {"attnkit_recorded": {"release": new, "previous": old}},
    }
    made = attnkit_plan.rollback(fleet, list(fleet), ["25%"], "")
    assert [(node["step"], node["changes"], node["why"]) for node in made["nodes"]] == [
        ("canary", ["image"], ""),
        ("", [], "rolled back already, from cuda-ampere@bbbbbbbbbbbb"),
        ("", [], "no previous release is recorded"),
        ("batch 1", ["image"], ""),
    ]
    assert [cause["nodes"] for cause in made["objections"]] == [["c"]]
    assert "rolled back" in " ".join(plan.lines({"kind": "rollback", **made}))


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0 s"), (59.6, "1 min 0 s"), (190, "3 min 10 s"), (3700, "1 h 1 min")])
def test_elapsed(seconds: float, text: str) -> None:
    assert elapsed(seconds) == text


# --------------------------------------------------------------------------- through ansible-playbook, without Docker
MISSING = {"docker_container": {"failed": True, "msg": "Cannot find image"}, "attnkit_gate": FAILED}


@pytest.mark.slow
def test_check_shows_the_plan_of_a_release_that_no_node_has(answering: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, said = answering("rollout", {"gpu-1": MISSING, "gpu-2": MISSING}, "--check")
    assert code == 0, said
    assert "rollout: 2 of 2 nodes change; 1 canary, then a batch of 1" in said
    rows = [line.split() for line in said.splitlines() if line.startswith("gpu-")][:2]
    assert [(row[0], row[1], row[-6:]) for row in rows] == [
        ("gpu-1", "h100", ["aaaaaaa", "bbbbbbb", "FLASH_ATTN", "canary", "no", "image"]),
        ("gpu-2", "h100", ["aaaaaaa", "bbbbbbb", "FLASH_ATTN", "1", "no", "image"]),
    ]
    assert "--check: nothing was changed" in said and "TASK [" not in said
    assert [line for line in said.splitlines() if len(line) > 80 and "written:" not in line and " : ok=" not in line] == []
    written = json.loads((tmp_path / "out" / "plan.json").read_text(encoding="utf-8"))
    assert [node["to"] for node in written["nodes"]] == [NEW, NEW] and written["check"] is True
    assert "no objections" in said and "No objections" in (tmp_path / "out" / "plan.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "gpu-1" / "state" / "release.json").read_text(encoding="utf-8"))["release"]["image"] == OLD


@pytest.mark.slow
def test_objections_stop_it_with_the_plan(answering: Callable[..., tuple[int, str]]) -> None:
    full = {"attnkit_preflight": {"findings": [{"check": "disk", "ok": False, "detail": "1.3 GiB free"}], "machine": None}}
    code, said = answering("rollout", {"gpu-1": full, "gpu-2": full, "gpu-3": {}})
    assert code != 0
    assert "  gpu-[1-2]: disk: 1.3 GiB free\n" in said and said.count("1.3 GiB free") == 1
    assert "nothing was changed; once the objections are gone" in said
    assert "image pulled" not in said


@pytest.mark.slow
def test_a_line_a_change_and_a_table_at_the_end(answering: Callable[..., tuple[int, str]]) -> None:
    code, said = answering("rollout", {"gpu-1": {}, "gpu-2": {"attnkit_gate": [FAILED, PASSED]}, "gpu-3": {}})
    assert code != 0
    lines = [re.sub(r"(?:\d+ (?:h|min) )*\d+ (?:s|min)\)", "N s)", line) for line in said.splitlines()]
    roll_of = lines[: lines.index("PLAY RECAP " + "*" * 69)]
    assert [line for line in roll_of if re.match(r"gpu-[123]  \S", line) and "h100" not in line] == [
        "gpu-1  image pulled",
        "gpu-1  service started, self-test under way",
        "gpu-1  self-test passed, serving  (1 of 3, N s)",
        "gpu-2  image pulled",
        "gpu-2  service started, self-test under way",
        "gpu-2  failed: the self-test failed: wrong numbers",
        "gpu-2  the recorded release started",
        "gpu-2  reverted, serves again  (2 of 3, N s)",
    ]
    end = said[said.index("PLAY RECAP") :]
    rows = {
        line.split()[0]: line for line in end.splitlines() if line.startswith("gpu-") and " : " not in line and ": " not in line
    }
    assert re.search(r"h100 +serves +FLASH_ATTN +41\.5 +3900\.0 +\d+ s$", rows["gpu-1"])
    assert " reverted " in rows["gpu-2"] and "untouched" in rows["gpu-3"]
    assert "gpu-2: the self-test failed: wrong numbers | reverted: yes, and it serves again" in end
    assert re.search(r"next: ansible -i \S+hosts.json gpu-2 -b .*-m ansible.builtin.command", end)
    assert "TASK [attnkit.fleet.common : Run the service]" not in said
