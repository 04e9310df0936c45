"""What serves against what was validated: the layers that the engine's workers say they built.

A kind of layer, or a backend, that no self-test covered is validated while the engine waits, before anything is ready; another
implementation under a validated name is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from attnkit.boot.candidates import Candidate
from attnkit.boot.devices import Tested
from attnkit.boot.report import BootReport, ServedLayers
from attnkit.boot.towers import not_validated, tower_candidate
from attnkit.engines.vllm.census import Counted
from attnkit.engines.vllm.driver import PREFIX
from attnkit.engines.vllm.expected import Expected
from attnkit.engines.vllm.serving_census import Spoken
from attnkit.errors import AttnkitError, InconclusiveError, UsageError
from attnkit.selftest.results import Verdict
from attnkit.spec import TOWERS, AttentionSpec
from attnkit.wording import layer_text, spec_text

Ask: TypeAlias = Callable[[Candidate, tuple[AttentionSpec, ...]], tuple[Tested, ...]]
"""Runs the self-test of a candidate for kinds of layer, on every device that serves."""


_REPLACED = (
    "find what replaces it in the engine's environment (another plugin or build of vLLM); the report's engine.layers names it"
)


@dataclass(frozen=True)
class Validated:
    """What passed its self-test.

    Args:
        backend: the name of what computes ("CPU_ATTN"; attnkit's own where its plugin computes).
        specs: the kinds of layer.
        implementation: the classes that were driven; empty where they are not known.
    """

    backend: str
    specs: frozenset[AttentionSpec]
    implementation: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Layers that serve and that no self-test covered, and what of them was not."""

    served: Counted
    what: Literal["backend", "implementation", "layer"]
    text: str


def kind_of(spec: AttentionSpec) -> AttentionSpec:
    """`spec` as kinds are told apart: without the block size, which the engine divides into what its kernel takes."""
    return replace(spec, block_size=None)


def is_tower(served: Counted) -> bool:
    """Whether layers belong to an encoder of images or sound, which may have a backend of its own."""
    return served.kind.role in TOWERS


def difference(served: Counted, validated: Iterable[Validated]) -> Difference | None:
    """What of these layers was not validated, the widest first; None where all of it was."""
    same = [one for one in validated if one.backend == served.backend]
    layers = f"{served.kind.count} {served.kind.role} layers ({_words(served)})"
    if not same:
        return Difference(served, "backend", f"{layers} run {served.backend or served.layer_class}, which was not validated")
    known = [one for one in same if one.implementation in ((), served.implementation)]
    if served.implementation and not known:
        runs, was = (" with ".join(classes) for classes in (served.implementation, same[0].implementation))
        return Difference(served, "implementation", f"{layers} run {runs} as {served.backend}; what was validated is {was}")
    if not any(kind_of(served.kind.spec) in one.specs for one in known or same):
        return Difference(served, "layer", f"{layers} run {served.backend}, which was validated for other layers only")
    return None


def _words(served: Counted) -> str:
    return ", ".join(filter(None, (spec_text(kind_of(served.kind.spec)), layer_text(served.kind))))


def validated_by(verdicts: Sequence[Verdict], candidate: Candidate, specs: Iterable[AttentionSpec]) -> list[Validated]:
    """What a candidate's verdicts cover: the kinds of layer that passed on some device and on none did not."""
    own = [verdict for verdict in verdicts if verdict.backend == candidate.test]
    found = []
    for implementation in dict.fromkeys(verdict.implementation for verdict in own):
        outcomes: dict[str, set[str]] = {}
        for verdict in own:
            outcomes.setdefault(verdict.layer, set()).add(verdict.outcome)
        passed = frozenset(kind_of(spec) for spec in specs if outcomes.get(spec_text(spec)) == {"pass"})
        found.append(Validated(candidate.serves, passed, implementation))
    return found


class ServedCheck:
    """Compares what the engine's workers built with what boot validated, and has validated what is missing.

    Args:
        candidate, specs: what was validated before the engine started, and for which kinds of layer.
        report: boot's; its verdict becomes that of what is validated here.
        ask: None where the engine's own implementation cannot be asked, or is not to be: differences are warnings then.
        platform: vLLM's word for it, which decides what can be asked of towers.
    """

    def __init__(
        self,
        candidate: Candidate,
        specs: Sequence[AttentionSpec],
        report: BootReport,
        ask: Ask | None,
        platform: str = "cpu",
    ) -> None:
        self._candidate, self._report, self._ask, self._platform = candidate, report, ask, platform
        self._validated = validated_by(_good(report), candidate, specs)

    def check(self, spoken: Spoken, version: str | None) -> list[str]:
        """See that what serves was validated, and have validated what was not.

        Args:
            spoken: what came through the channel.
            version: of the engine that was validated.

        Returns:
            Warnings.

        Raises:
            AttnkitError: something else serves, or what was missing failed its self-test.
            InconclusiveError: what was missing could not be validated.
        """
        warnings = list(spoken.problems)
        everything = [one for rank in spoken.ranks for one in rank.census.counted]
        served = [one for one in everything if not is_tower(one)]
        if self._ask is None:
            missing = (difference(one, self._validated) for one in dict.fromkeys(served))
            return warnings + [found.text for found in missing if found is not None]
        others = sorted({rank.version for rank in spoken.ranks} - {version}) if version else []
        if others and self._candidate.expected is not None:
            raise AttnkitError(
                f"the engine's workers run vLLM {', '.join(others)}; what was validated is vLLM {version}", _REPLACED
            )
        self._validate_missing(served)
        return warnings + self._validate_towers([one for one in everything if is_tower(one)])

    def _validate_towers(self, served: Sequence[Counted]) -> list[str]:
        """Have towers validated on what the engine took for them; the warnings name those that nothing here can ask."""
        warnings: list[str] = []
        missing: dict[Candidate, dict[Counted, None]] = {}
        for one in dict.fromkeys(served):
            candidate = tower_candidate(one.backend, self._platform)
            if candidate is None:
                warnings.append(not_validated(one.kind, one.backend))
                continue
            self._validated += validated_by(_good(self._report), candidate, [one.kind.spec])
            if difference(one, self._validated) is not None:
                missing.setdefault(candidate, {})[one] = None
        for candidate, layers in missing.items():
            self._test(candidate, [found for one in layers if (found := difference(one, self._validated)) is not None])
        before = self._report.decision.warnings if self._report.decision is not None else []
        return [text for text in warnings if text not in before]

    def _validate_missing(self, served: Sequence[Counted]) -> None:
        missing = [found for one in dict.fromkeys(served) if (found := difference(one, self._validated)) is not None]
        asked_for = self._candidate.expected is not None and self._report.decision and self._report.decision.explicit
        unchosen = self._candidate.expected is not None and all(one.backend != self._candidate.serves for one in served)
        for found in missing:
            if found.what == "implementation" or (found.what == "backend" and (asked_for or unchosen)):
                raise AttnkitError(
                    f"the engine runs something else than {self._candidate.serves} as validated: {found.text}", _REPLACED
                )
        for backend in dict.fromkeys(found.served.backend for found in missing):
            self._validate(backend, [found for found in missing if found.served.backend == backend])

    def _validate(self, backend: str | None, missing: Sequence[Difference]) -> None:
        """Test `backend` for the layers that are missing, and see that they are covered then."""
        assert self._ask is not None
        candidate = self._candidate
        if backend is None:
            raise InconclusiveError(f"{missing[0].text}, and it has no name by which it could be")
        if backend != candidate.serves or candidate.expected is None:
            test = PREFIX + backend
            candidate = replace(candidate, provider=None, test=test, serves=backend, expected=Expected(test, backend))
        self._test(candidate, missing)

    def _test(self, candidate: Candidate, missing: Sequence[Difference]) -> None:
        assert self._ask is not None
        specs = tuple(dict.fromkeys(found.served.kind.spec for found in missing))
        try:
            tested = self._ask(candidate, specs)
        except UsageError as error:
            raise InconclusiveError(f"{missing[0].text}, and cannot be: {error}") from None
        bad = [one for one in tested if not one.serves]
        if bad:
            self._report.verdict = "fail" if any(one.outcome == "fail" for one in bad) else "inconclusive"
            kind = AttnkitError if self._report.verdict == "fail" else InconclusiveError
            raise kind(f"{missing[0].text}; validated now, before it is ready: {bad[0].why}")
        self._validated += validated_by([verdict for one in tested for verdict in one.verdicts], candidate, specs)
        for found in missing:
            if (still := difference(found.served, self._validated)) is not None:
                raise AttnkitError(f"{still.text}, by a self-test of {candidate.serves} just now", _REPLACED)

    def rows(self, spoken: Spoken) -> list[ServedLayers]:
        """The served layers as the report has them; one row for layers that are the same on several ranks."""
        ranks: dict[Counted, set[int]] = {}
        for rank in spoken.ranks:
            before = rank.replica * rank.census.tensor * rank.census.pipeline
            for one in rank.census.counted:
                ranks.setdefault(one, set()).add(before + rank.rank)
        return [
            ServedLayers(
                count=one.kind.count,
                role=one.kind.role,
                layer=_words(one),
                layer_class=one.layer_class,
                backend=one.backend,
                implementation=list(one.implementation),
                ranks=sorted(found),
                validated=difference(one, self._validated) is None,
            )
            for one, found in ranks.items()
        ]


def _good(report: BootReport) -> list[Verdict]:
    """The verdicts of the devices that serve."""
    left_out = {row.index for row in report.devices if row.left_out}
    return [verdict for verdict in report.selftest if verdict.device_index not in left_out]
