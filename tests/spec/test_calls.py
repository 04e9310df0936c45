"""A call has a batch, wherever it keeps it, and can be changed without knowing where."""

from __future__ import annotations

import pytest
import torch

from attnkit.backends import registry
from attnkit.hardware.device import Device
from attnkit.selftest.cases import Case, cases
from attnkit.selftest.reference import reference
from attnkit.selftest.tensors import build
from attnkit.spec import FEATURES, NO_WINDOW, OPS, Call, MlaDecode, Op, Softmax, features_of

CPU = Device("cpu", "cpu", "CPU", "x86_64")


def made(op: Op) -> Call:
    capability = registry.get("NO_ATTENTION").providers[0].capability
    case: Case = next(c for c in cases("quick", capability, CPU, None) if c.op == op and c.dtype == "float32")
    return build(case)


@pytest.mark.parametrize("op", OPS)
def test_a_field_of_the_batch_is_changed_where_the_call_keeps_it(op: Op) -> None:
    call = made(op)
    out = torch.empty_like(call.batch.query)
    changed = call.with_batch(out=out, return_lse=True)
    assert type(changed) is type(call)
    assert changed.batch.out is out and changed.batch.return_lse
    assert call.batch.out is not out and changed.batch.query is call.batch.query
    assert changed.with_batch(out=call.batch.out, return_lse=call.batch.return_lse).batch == call.batch


@pytest.mark.parametrize("op", OPS)
def test_the_softmax_is_changed_where_the_call_keeps_it(op: Op) -> None:
    call = made(op)
    scale = call.batch.softmax.softmax_scale
    changed = call.with_softmax(softmax_scale=2.0 * scale)
    assert (changed.batch.softmax.softmax_scale, call.batch.softmax.softmax_scale) == (2.0 * scale, scale)
    assert not torch.equal(reference(changed).out, reference(call).out)


def test_the_softmax_of_mla_is_plain_and_causal() -> None:
    call = made("mla_decode")
    assert isinstance(call, MlaDecode)
    assert call.softmax == Softmax(call.softmax_scale)


@pytest.mark.parametrize("op", OPS)
def test_the_output_has_the_shape_that_the_call_says(op: Op) -> None:
    call = made(op)
    assert call.out_shape == tuple(reference(call).out.shape)
    assert tuple(registry.get("NO_ATTENTION").run(call.with_batch(out=None)).out.shape) == call.out_shape


PLAIN = {"causal": True, "window": NO_WINDOW, "softcap": 0.0} | dict.fromkeys(FEATURES[3:], False)


@pytest.mark.parametrize(
    ("feature", "change"),
    [
        ("non_causal", {"causal": False}),
        ("window", {"window": (0, -1)}),
        ("window", {"window": (-1, 0)}),
        ("softcap", {"softcap": 0.5}),
        *((feature, {feature: True}) for feature in FEATURES[3:]),
    ],
)
def test_each_feature_is_asked_for_by_what_needs_it(feature: str, change: dict[str, object]) -> None:
    assert features_of(**PLAIN) == frozenset()
    assert features_of(**{**PLAIN, **change}) == {feature}
