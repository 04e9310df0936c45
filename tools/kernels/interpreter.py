"""Triton's interpreter without the work whose result it throws away: for programs that interpret many kernels."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any


def lean() -> None:
    """Make this process's interpreter faster (one small case: 0.27 s to 0.14 s); what a kernel computes is not touched.

    - Each integer sum and product is computed once more in 64 bits, for an assertion that only `debug` switches on.
    - Each call of a device function searches the whole of triton.language for what it has to replace there.
    """
    from triton.language import core
    from triton.runtime import interpreter

    assert not interpreter.InterpreterOptions.debug
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

    @cache
    def builtins(package: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if core.is_builtin(member)]

    def patch(package: Any, builder: Any, scope: Any) -> None:
        for name in builtins(package):
            member = getattr(package, name)
            if core.is_builtin(member):  # not replaced yet
                interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._patch_builtin = patch
