"""The layers that the engine's workers built, against what was validated: recorded layers, and a real supervised process."""

from __future__ import annotations

import io
import json
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attnkit.backends.base import Accepted
from attnkit.boot import devices as boot_devices
from attnkit.boot.candidates import Candidate
from attnkit.boot.events import Events
from attnkit.boot.outputs import Outputs
from attnkit.boot.report import BootReport, DecisionReport
from attnkit.boot.served import ServedCheck, Validated, difference, kind_of
from attnkit.boot.serving import EngineSettings, Serving
from attnkit.engines.vllm import tower
from attnkit.engines.vllm.census import count
from attnkit.engines.vllm.expected import Expected
from attnkit.engines.vllm.serving_census import SILENCE, Rank, Spoken
from attnkit.errors import AttnkitError, InconclusiveError
from attnkit.hardware.device import Detection, Device
from attnkit.profiles.settings import effective
from attnkit.selftest.results import CaseResult, Outcome, Verdict
from attnkit.spec import AttentionSpec
from attnkit.wording import spec_text

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data/served-layers.json").read_text("utf-8"))
"""What a worker of vLLM 0.32.0 on CPU wrote for `attnkit tiny-model`: four equal layers."""
FIRST, *REST = RECORDED["layers"]
CPU = Device(vendor="cpu", kind="cpu", name="A CPU", arch="x86_64")
CANDIDATE = Candidate("TORCH_SDPA", None, "vllm:CPU_ATTN", "CPU_ATTN", "vllm 0.32.0", Expected("vllm:CPU_ATTN", "CPU_ATTN"))
CLASSES = tuple(FIRST["implementation"])
SWAPPED = FIRST | {"implementation": ["swapped.Swapped", "swapped.SwappedImpl"]}
WINDOW = FIRST | {"window": 128}
FLEX = FIRST | {"backend": "FLEX_ATTENTION", "implementation": ["vllm.Flex", "vllm.FlexImpl"]}
TOWER = FIRST | {"kind": "vision", "backend": "TORCH_SDPA", "implementation": [tower.LAYER]}


def spoken(*layers: dict[str, Any], version: str = "0.32.0") -> Spoken:
    return Spoken((Rank(version, 0, 0, 1, count(RECORDED | {"layers": list(layers)})),), ())


(SERVED,) = spoken(FIRST).ranks[0].census.counted
SPEC = SERVED.kind.spec


def verdict(test: str, outcome: Outcome, spec: AttentionSpec, implementation: Sequence[str] = CLASSES) -> Verdict:
    case = CaseResult("decode", "the scale", outcome, "" if outcome == "pass" else "error 2.0 over 1.0")
    parts = ("vllm 0.32.0", "A CPU", "quick", outcome, (case,))
    return Verdict(test, *parts, layer=spec_text(spec), implementation=tuple(implementation))


def report(explicit: str | None = None) -> BootReport:
    accepted = Accepted("TORCH_SDPA", "torch", "")
    decision = DecisionReport(
        device=CPU, chosen=accepted, accepted=[], rejected=[], explicit=explicit, order=[], order_source="", installed_source=""
    )
    made = BootReport(
        attnkit_version="0", created="", host={}, node_type=None, node_type_source="given", detection=Detection((), ())
    )
    return made.model_copy(
        update={"decision": decision, "selftest": [verdict("vllm:CPU_ATTN", "pass", SPEC)], "verdict": "pass"}
    )


def test_the_summary_has_the_language_model_and_its_tower() -> None:
    made = report()
    made.selftest.append(verdict("vllm:TOWER:TORCH_SDPA", "pass", tower.USUAL, [tower.LAYER]))
    made.summarise()
    assert [(one.name, one.outcome) for one in made.layer_kinds] == [
        (spec_text(SPEC), "pass"),
        (spec_text(tower.USUAL), "pass"),
    ]


class SelfTest:
    """A self-test that comes to one outcome; remembers what it was asked."""

    def __init__(self, outcome: Outcome = "pass", implementation: Sequence[str] = CLASSES) -> None:
        self.outcome, self.implementation = outcome, implementation
        self.asked: list[tuple[str, list[str]]] = []

    def __call__(self, candidate: Candidate, specs: tuple[AttentionSpec, ...]) -> tuple[boot_devices.Tested, ...]:
        self.asked.append((candidate.test, [" ".join(sorted(spec.features)) for spec in specs]))
        verdicts = tuple(verdict(candidate.test, self.outcome, spec, self.implementation) for spec in specs)
        return (boot_devices.Tested(CPU, verdicts, self.outcome),)


def check(found: Spoken, ask: SelfTest | None, explicit: str | None = None, candidate: Candidate = CANDIDATE) -> list[str]:
    """What the report says of the layers, and the warnings."""
    checked = ServedCheck(candidate, [SPEC], report(explicit), ask)
    warnings = checked.check(found, "0.32.0")
    rows = checked.rows(found)
    return [f"{row.count} {row.role} {row.backend} {'validated' if row.validated else 'not'}" for row in rows] + warnings


def test_ranks_are_numbered_through_all_replicas() -> None:
    census = count(RECORDED | {"layers": [FIRST], "ranks": {"tensor": 2, "pipeline": 1}})
    ranks = tuple(Rank("0.32.0", replica, rank, 2, census) for replica in (0, 1) for rank in (0, 1))
    (row,) = ServedCheck(CANDIDATE, [SPEC], report(), None).rows(Spoken(ranks, ()))
    assert row.ranks == [0, 1, 2, 3]


def test_what_was_validated_needs_nothing_more() -> None:
    ask = SelfTest("fail")
    assert check(spoken(FIRST, *REST), ask) == ["4 decoder CPU_ATTN validated"]
    assert ask.asked == []


def test_a_tower_is_validated_on_its_own_backend_or_said() -> None:
    ask = SelfTest(implementation=[tower.LAYER])
    assert check(spoken(FIRST, TOWER), ask) == ["1 decoder CPU_ATTN validated", "1 vision TORCH_SDPA validated"]
    assert ask.asked == [("vllm:TOWER:TORCH_SDPA", ["non_causal"])]
    *rows, warning = check(spoken(FIRST, TOWER | {"backend": "FLASHINFER"}), ask)
    assert rows == ["1 decoder CPU_ATTN validated", "1 vision FLASHINFER not"]
    assert warning == "1 vision layers (4/2 × 64) are not validated: attnkit cannot drive FLASHINFER as the engine's towers do"
    with pytest.raises(AttnkitError, match=r"1 vision layers .* run TORCH_SDPA, which was not validated; validated now"):
        check(spoken(FIRST, TOWER), SelfTest("fail"))
    with pytest.raises(AttnkitError, match=r"run mine\.Layer as TORCH_SDPA"):
        check(spoken(FIRST, TOWER | {"implementation": ["mine.Layer"]}), ask)


@pytest.mark.parametrize(
    ("layer", "what", "words"),
    [
        (FIRST, None, ""),
        (SWAPPED, "implementation", "run swapped.Swapped with swapped.SwappedImpl as CPU_ATTN; what was validated is vllm."),
        (WINDOW, "layer", "window 128) run CPU_ATTN, which was validated for other layers only"),
        (FIRST | {"num_kv_heads": 1}, "layer", "4/1 heads of 64"),
        (FIRST | {"cache_dtype": "fp8_e5m2"}, "layer", "cache fp8_e5m2"),
        (FLEX, "backend", "run FLEX_ATTENTION, which was not validated"),
        (FIRST | {"backend": None}, "backend", "run Attention, which was not validated"),
    ],
)
def test_every_difference_is_found(layer: dict[str, Any], what: str | None, words: str) -> None:
    (served,) = spoken(layer).ranks[0].census.counted
    found = difference(served, [Validated("CPU_ATTN", frozenset({kind_of(SPEC)}), CLASSES)])
    assert (found.what if found else None) == what
    assert words in (found.text if found else "")


def test_the_block_size_makes_no_other_kind() -> None:
    other = replace(SERVED, kind=replace(SERVED.kind, spec=replace(SPEC, block_size=16)))
    assert difference(other, [Validated("CPU_ATTN", frozenset({kind_of(SPEC)}), CLASSES)]) is None


def test_a_kind_that_was_not_validated_is_validated_before_it_is_ready() -> None:
    ask = SelfTest()
    assert check(spoken(FIRST, WINDOW), ask) == ["1 decoder CPU_ATTN validated", "1 decoder CPU_ATTN validated"]
    assert ask.asked == [("vllm:CPU_ATTN", ["window"])]


def test_a_second_backend_in_the_model_is_validated_too() -> None:
    ask = SelfTest(implementation=FLEX["implementation"])
    assert check(spoken(FIRST, FLEX), ask) == ["1 decoder CPU_ATTN validated", "1 decoder FLEX_ATTENTION validated"]
    assert ask.asked == [("vllm:FLEX_ATTENTION", [""])]


def test_behind_a_wrapper_the_engines_own_backend_is_validated_once_it_says_which() -> None:
    ask = SelfTest()
    own = Candidate("TORCH_SDPA", "torch", "TORCH_SDPA", "TORCH_SDPA", "torch")
    assert check(spoken(FIRST), ask, candidate=own) == ["1 decoder CPU_ATTN validated"]
    assert ask.asked == [("vllm:CPU_ATTN", [""])]


@pytest.mark.parametrize(
    ("layers", "ask", "explicit", "error", "words"),
    [
        ((WINDOW,), SelfTest("fail"), None, AttnkitError, "fail: decode: error 2.0 over 1.0"),
        ((WINDOW,), SelfTest("inconclusive"), None, InconclusiveError, "inconclusive: decode: error 2.0 over 1.0"),
        ((FIRST, SWAPPED), SelfTest(), None, AttnkitError, "something else than CPU_ATTN as validated"),
        ((FLEX,), SelfTest(), None, AttnkitError, "FLEX_ATTENTION, which was not validated"),
        ((FIRST, FLEX), SelfTest(), "TORCH_SDPA", AttnkitError, "FLEX_ATTENTION, which was not validated"),
        ((FIRST, FLEX), SelfTest(), None, AttnkitError, "by a self-test of FLEX_ATTENTION just now"),
        ((FIRST, FIRST | {"backend": None}), SelfTest(), None, InconclusiveError, "no name by which it could be"),
    ],
    ids=["fails", "unsure", "swapped", "replaced", "explicit", "another class", "nameless"],
)
def test_what_is_not_covered_then_never_becomes_ready(
    layers: tuple[dict[str, Any], ...], ask: SelfTest, explicit: str | None, error: type[AttnkitError], words: str
) -> None:
    with pytest.raises(AttnkitError) as raised:
        check(spoken(*layers), ask, explicit)
    assert type(raised.value) is error
    assert words in str(raised.value)


def test_another_version_than_the_validated_one_is_an_error() -> None:
    with pytest.raises(AttnkitError, match=r"run vLLM 0\.31\.0; what was validated is vLLM 0\.32\.0"):
        check(spoken(FIRST, version="0.31.0"), SelfTest())


def test_where_nothing_can_be_asked_differences_and_silence_are_warnings() -> None:
    (row, warning) = check(spoken(FLEX), None)
    assert row == "1 decoder FLEX_ATTENTION not" and "which was not validated" in warning
    assert check(Spoken((), (SILENCE,)), SelfTest()) == [SILENCE]


ENGINE = Path(__file__).parents[1] / "engines/openai_engine.py"
SAYS = """
test "$(stat -c %a "$ATTNKIT_CENSUS_DIR")" = 700 && cp "$0" "$ATTNKIT_CENSUS_DIR/1.json" && cd "${0%/*}" &&
printf %s "$ATTNKIT_CENSUS_DIR" > channel && exec "$@"
"""


def serve(tmp_path: Path, layers: list[dict[str, Any]], ask: SelfTest) -> tuple[int, BootReport, list[Any]]:
    """A small real engine that first says what it built; until boot stops it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (tmp_path / "said").write_text(json.dumps(RECORDED | {"layers": layers}))
    command = ("sh", "-c", SAYS, str(tmp_path / "said"), sys.executable, str(ENGINE), port, "--no-api")
    stream, made = io.StringIO(), report()
    outputs = Outputs(tmp_path / "report.json", tmp_path / "ready.json", tmp_path / "metrics.prom")
    settings = EngineSettings(command, f"http://127.0.0.1:{port}/health", 60.0)
    serving = Serving(settings, made, outputs, Events(stream), time.monotonic())
    code = serving.run(CPU, effective(None, None), CANDIDATE, ServedCheck(CANDIDATE, [SPEC], made, ask))
    return code, made, [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_engine_whose_loaded_layers_differ_is_stopped(tmp_path: Path) -> None:
    code, made, events = serve(tmp_path, [SWAPPED, *REST], SelfTest())
    assert code == made.exit_code == 1
    assert "1 decoder layers (paged bfloat16, 4/2 heads of 64) run swapped.Swapped" in str(made.error)
    assert made.engine and [(row.count, row.validated) for row in made.engine.layers or ()] == [(1, False), (3, True)]
    assert [event["problem"] for event in events if event["event"] == "engine.layers"] == [made.error]
    assert not any(event["event"] == "ready" for event in events)
    assert json.loads((tmp_path / "ready.json").read_text())["state"] == "failed"
    channel = Path((tmp_path / "channel").read_text())
    assert channel.is_absolute() and not channel.exists(), "it goes with the boot"
    assert str(channel) not in made.model_dump_json(), "of no interest to whoever reads the report"


def test_what_could_not_be_validated_ends_with_the_exit_code_of_inconclusive(tmp_path: Path) -> None:
    code, made, _ = serve(tmp_path, [WINDOW], SelfTest("inconclusive"))
    assert code == made.exit_code == 4 and made.verdict == "inconclusive"
