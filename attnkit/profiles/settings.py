"""A node profile with a workload laid over it."""

from __future__ import annotations

from dataclasses import dataclass

from attnkit.profiles.schema import NodeProfile, OnBadDevice, ProfileLevel, WorkloadProfile
from attnkit.spec import KvCacheDtype, Op


@dataclass(frozen=True)
class Settings:
    """A node's profile with a workload's changes in it: workload on the node, else workload, else node, field by field.

    Args:
        order: names to try, None where nothing states any; order_source: who stated them.
        engine_args: the node's, then the workload's.
    """

    order: tuple[str, ...] | None
    order_source: str
    dtype: str
    kv_cache_dtype: KvCacheDtype
    block_size: int
    level: ProfileLevel
    op: Op
    model: str | None
    engine_args: tuple[str, ...]
    engine_env: dict[str, str]
    on_bad_device: OnBadDevice = "fail"


def effective(node: NodeProfile | None, workload: WorkloadProfile | None) -> Settings:
    """Put a node's profile and a workload's together."""
    here = node.workloads.get(workload.name) if node and workload else None
    layers = [layer for layer in (here, workload, node) if layer is not None]
    names = {id(here): f"profile {node.name if node else ''}, workload {workload.name if workload else ''}"}
    names |= {id(workload): f"workload {workload.name}"} if workload else {}
    names |= {id(node): f"profile {node.name}"} if node else {}
    stated = next((layer for layer in layers if layer.backends is not None), None)
    engines = [layer.engine for layer in reversed(layers)]
    return Settings(
        order=tuple(stated.backends) if stated and stated.backends else None,
        order_source=names[id(stated)] if stated else "",
        dtype=next((x.dtype for x in layers if x.dtype is not None), "auto"),
        kv_cache_dtype=next((x.kv_cache_dtype for x in layers if x.kv_cache_dtype is not None), "auto"),
        block_size=next((x.block_size for x in layers if x.block_size is not None), 16),
        level=next((x.level for x in layers if x.level is not None), "standard"),
        op=workload.op if workload else "paged",
        model=workload.model if workload else None,
        engine_args=tuple(arg for engine in engines for arg in engine.args),
        engine_env={name: value for engine in engines for name, value in engine.env.items()},
        on_bad_device=node.on_bad_device if node else "fail",
    )
