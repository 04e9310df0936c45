"""A census of a model's attention layers, taken from vLLM itself before it serves: `census_child` builds the model without
weights in a process of its own, and what registers is counted here by kind.

Imports nothing of vLLM or torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from attnkit.engines.vllm.census_child import MARK
from attnkit.errors import InconclusiveError, require_packages
from attnkit.spec import (
    DTYPES,
    AttentionSpec,
    Dtype,
    Feature,
    KvCacheDtype,
    LayerKind,
    LayerRole,
    OtherLayers,
)

_CACHES: dict[str, KvCacheDtype] = {"fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
_ROLES: dict[str, LayerRole] = {
    "decoder": "decoder",
    "mla": "decoder",
    "sparse_mla": "decoder",
    "encoder": "encoder",
    "cross": "cross",
    "vision": "vision",
    "audio": "audio",
}


@dataclass(frozen=True)
class Counted:
    """Layers of one kind that vLLM computes with one backend.

    Args:
        kind: their shape, of one rank.
        backend: vLLM's name of the backend that it chose for them; None where the layer does not say.
        layer_class: vLLM's class.
        implementation: the classes that compute, of the backend and of its `impl`, as paths; empty where they are not known.
        scale_known: whether the layer says its factor on q.k; where not, the kind's `softmax_scale` means nothing.
    """

    kind: LayerKind
    backend: str | None
    layer_class: str
    implementation: tuple[str, ...] = ()
    scale_known: bool = True


@dataclass(frozen=True)
class Census:
    """What vLLM builds for a command.

    Args:
        model, architecture: as vLLM resolved them.
        tensor, pipeline: ranks of each kind; the layers are those of one rank.
        counted: attention layers by kind and backend.
        other: layers without softmax attention.
    """

    model: str
    architecture: str | None
    tensor: int
    pipeline: int
    counted: tuple[Counted, ...]
    other: tuple[OtherLayers, ...]


def take(options: Sequence[str], *, environment: Mapping[str, str] | None = None, timeout: float = 300.0) -> Census:
    """Ask the vLLM that is installed beside this Python.

    Args:
        options: what `vllm serve` is given, the model as `--model`.
        environment: of the engine; os.environ where None.
        timeout: seconds.

    Raises:
        UsageError: vLLM is not installed here.
        InconclusiveError: vLLM refuses the options or the model, its interface moved, or it took too long; with its words.
    """
    require_packages("a census of vLLM's layers", "vllm")
    command = [sys.executable, "-m", "attnkit.engines.vllm.census_child", *options]
    env = {**(os.environ if environment is None else environment), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise InconclusiveError(f"vLLM did not build the model within {timeout:.0f} s, so its layers are not known") from None
    line = next((text for text in reversed(done.stdout.splitlines()) if text.startswith(MARK)), None)
    if line is None:
        raise InconclusiveError(f"vLLM could not build the model, so its layers are not known: {_reason(done.stderr)}")
    return count(json.loads(line.removeprefix(MARK)))


def count(found: Mapping[str, Any]) -> Census:
    """The child's answer, counted by kind."""
    dtype = found["dtype"] if found["dtype"] in DTYPES else "bfloat16"
    counted: dict[Counted, int] = {}
    other: dict[str, int] = {}
    for row in found["layers"]:
        if row["kind"] in _ROLES:
            kind = _kind(row, cast(Dtype, dtype), found["block_size"])
            said = tuple(row.get("implementation", ()))
            one = Counted(kind, row["backend"], row["class"], said, row.get("scale") is not None)
            counted[one] = counted.get(one, 0) + 1
        elif row["kind"] == "other":
            other[row["what"]] = other.get(row["what"], 0) + 1
    ranks = found["ranks"]
    return Census(
        found["model"],
        found["architecture"],
        ranks["tensor"],
        ranks["pipeline"],
        tuple(replace(one, kind=replace(one.kind, count=times)) for one, times in counted.items()),
        tuple(OtherLayers(times, what) for what, times in other.items()),
    )


def _kind(row: Mapping[str, Any], dtype: Dtype, block_size: int | None) -> LayerKind:
    role = _ROLES[row["kind"]]
    latent = row["kind"] in ("mla", "sparse_mla")
    cached = role == "decoder"
    asked: dict[Feature, bool] = {
        "window": bool(row.get("window")),
        "chunked": bool(row.get("chunk")),
        "softcap": bool(row.get("softcap")),
        "sinks": bool(row.get("sinks")),
        "alibi": bool(row.get("alibi")),
        "non_causal": not cached,
        "cross": role == "cross",
    }
    spec = AttentionSpec(
        op="mla_decode" if row["kind"] == "mla" else "sparse_mla" if latent else "paged" if cached else "varlen",
        dtype=dtype,
        num_heads=row["num_heads"],
        num_kv_heads=row["num_kv_heads"],
        head_dim=row["head_dim"],
        head_dim_v=None if row["head_dim_v"] == row["head_dim"] else row["head_dim_v"],
        kv_cache_dtype=_CACHES.get(str(row.get("cache_dtype")), "auto") if cached else "auto",
        block_size=block_size if cached else None,
        phases=frozenset({"decode"} if latent else {"prefill", "decode", "mixed"} if cached else {"prefill"}),
        features=frozenset(name for name, wanted in asked.items() if wanted),
    )
    scale = row.get("scale")
    usual = scale is not None and not latent and abs(scale - row["head_dim"] ** -0.5) < 1e-6
    window = row.get("window")
    both = role == "encoder" and window is not None
    return LayerKind(
        role,
        1,
        spec,
        window=window - 1 if window and both else window,  # vLLM counts the own token on either side, too
        two_sided=both,
        chunk=row.get("chunk"),
        softcap=row.get("softcap"),
        softmax_scale=None if usual else scale,
    )


def _reason(stderr: str) -> str:
    """The last words of a traceback, or of whatever was written."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return next(iter(reversed(errors)), lines[-1] if lines else "it said nothing")[:300]


def language_specs(census: Census) -> Iterable[AttentionSpec]:
    """One spec per distinct kind of the language model, in order."""
    return dict.fromkeys(one.kind.spec for one in census.counted if one.kind.role not in ("vision", "audio"))
