"""Layers of a model as lines of text, the same for vLLM's census and for attnkit's reading of the config.json."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from attnkit.engines.vllm.census import count
from attnkit.errors import AttnkitError, NotUnderstoodError
from attnkit.select.model_config import read_config
from attnkit.select.model_fields import BEARS_ON_ATTENTION, SHAPE
from attnkit.select.model_reading import HOLDS_NONE
from attnkit.spec import LayerKind

STATE = frozenset(HOLDS_NONE[word] for word in ("linear_attention", "mamba", "mamba2", "conv", "recurrent"))
"""Layers of a reading that keep a state instead of a cache: vLLM registers those, and no layer without either."""

_STATE_OF_VLLM = ("mamba", "linear_attention", "gdn", "kda", "short_conv", "recurrent", "delta")


UNKNOWN_SCALE = " scale not known"


def lines(kinds: Iterable[LayerKind], without_scale: Collection[LayerKind] = ()) -> list[str]:
    """One line a kind, sorted, with the number of its layers: role, operation, query heads / key heads x head size / value
    size, window, chunk and softcap with their sizes, other features, the softmax scale where it is not 1/sqrt(head size).

    Args:
        without_scale: the kinds whose scale nobody says.
    """
    found: Counter[str] = Counter()
    for kind in kinds:
        spec = kind.spec
        words = [f"{kind.role} {spec.op} {spec.num_heads}/{spec.num_kv_heads} x {spec.head_dim}/{spec.value_dim}"]
        words += [f"window {kind.window}{' both' if kind.two_sided else ''}"] if kind.window else []
        words += [f"chunk {kind.chunk}"] if kind.chunk else []
        words += [f"softcap {kind.softcap:g}"] if kind.softcap else []
        words += sorted(spec.features - {"window", "chunked", "softcap", "lse", "prefix_lm"})
        words += [f"scale {kind.softmax_scale:.5g}"] if kind.softmax_scale is not None else []
        found[" ".join(words) + UNKNOWN_SCALE * (kind in without_scale)] += kind.count
    return sorted(f"{number} {line}" for line, number in found.items())


def scales_as_known(reading: Iterable[str], census: Collection[str]) -> list[str]:
    """`reading` without a scale where the census has the same line and does not know its scale."""
    return sorted(
        unsaid if (unsaid := re.sub(r" scale \S+$", "", line) + UNKNOWN_SCALE) in census else line for line in reading
    )


def of_census(found: Mapping[str, Any]) -> list[str]:
    """Lines of what `census_child` wrote down."""
    census = count(found)
    state = sum(one.count for one in census.other if any(word in one.what.lower() for word in _STATE_OF_VLLM))
    unsaid = {one.kind for one in census.counted if not one.scale_known}
    return [*lines((one.kind for one in census.counted), unsaid), *([f"{state} with a state"] if state else [])]


def of_reading(config: Mapping[str, Any]) -> tuple[str, list[str], str]:
    """(how the reader answers, its lines, why): "read", "refused" or "not understood"; a tower that is not understood leaves
    the language model's lines."""
    try:
        need = read_config(dict(config), str(config.get("model_type")))
    except NotUnderstoodError as error:
        return "not understood", [], str(error)
    except AttnkitError as error:
        return "refused", [], str(error)
    state = sum(one.count for one in need.other if one.what in STATE)
    found = [*lines(need.layers), *([f"{state} with a state"] if state else [])]
    return ("not understood" if need.not_understood else "read"), found, "; ".join(need.not_understood)


def slim(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without what does not bear on attention; whole where the reading would not be the same."""

    def kept(part: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: kept(value) if isinstance(value, dict) and name not in _ALWAYS else value
            for name, value in part.items()
            if name in _ALWAYS
            or name in SHAPE
            or BEARS_ON_ATTENTION.search(name)
            or (isinstance(value, dict) and name.endswith("config"))
        }

    less = kept(config)
    return less if of_reading(less) == of_reading(config) else dict(config)


_ALWAYS = frozenset({"model_type", "architectures", "dtype", "torch_dtype", "rope_parameters", "rope_scaling"})
