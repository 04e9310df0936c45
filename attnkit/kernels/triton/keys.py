"""Triton's cache keys, made to depend on the code alone.

Triton (seen in 3.6.0 and 3.8.0) adds the values of global constants to a kernel's key, but takes those of a function it calls
before that function was hashed for the first time (`DependenciesFinder._update_hash`): a kernel gets one key where an earlier
kernel had a helper hashed, and another where none had. A precompiled kernel would then be found only by processes that launch
in the order in which it was built. Hashing every function after the ones it calls leaves one order.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, ModuleType
from typing import Any

_settled: set[int] = set()


def hash_callees_first(kernel: Any) -> None:
    """Hash everything that `kernel` calls, innermost first, then `kernel`. Free from the second time on."""
    if id(kernel) in _settled or not _hashed(kernel):
        return
    _settled.add(id(kernel))  # before the callees, as a function may call itself; kernels live as long as their module
    for callee in _callees(kernel):
        hash_callees_first(callee)
    kernel.cache_key  # noqa: B018 - computes and keeps it


def _callees(kernel: Any) -> Iterator[Any]:
    """Triton functions that the names in a function's code stand for; some may only look like it, which does no harm."""
    function = kernel.fn
    names = set(_names(function.__code__))
    for name in sorted(names):
        value = function.__globals__.get(name)
        if _hashed(value):
            yield value
        elif isinstance(value, ModuleType):
            yield from (found for inner in sorted(names) if _hashed(found := getattr(value, inner, None)))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _hashed(value: Any) -> bool:
    """Whether Triton hashes it: a jit function. In the interpreter nothing is."""
    return hasattr(type(value), "cache_key") and hasattr(getattr(value, "fn", None), "__code__")
