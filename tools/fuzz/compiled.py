"""Random calls of what our Triton kernels claim on an absent target, compiled: `python -m tools.fuzz.compiled --target gfx942`.

No GPU is needed: each draw is planned as on the target, and every launch that its kind can lead to is compiled. A claim that
the compiler refuses shows here and not on a user's card. A kernel that does not compile is printed with its draw.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from triton import knobs

from attnkit.backends import registry
from attnkit.backends.triton_common import code_of, own
from attnkit.errors import UnsupportedError, UsageError
from attnkit.kernels.aot.compile import compile_one
from attnkit.kernels.aot.variants import launches, variant_name
from attnkit.select.node import find_node
from tools.fuzz.build import build
from tools.fuzz.draws import Draw, draws


def claimed(backend: str, target: str, number: int, seed: int) -> Iterator[Draw]:
    """Draws of what our kernels claim on `target` through `backend`."""
    device = find_node(arch=target).device
    capability = own(registry.get(backend), device)
    if capability is not None:
        yield from islice(draws(capability, device, seed, small=False), number)


def refused_by_the_compiler(backend: str, target: str, found: Iterable[Draw], seen: set[str]) -> Iterator[str]:
    """The draws with a kernel that does not compile for `target`, and why; `seen` collects the names of kernels."""
    for draw in found:
        try:
            asked = launches(build(draw).call, target)
        except UnsupportedError:
            continue
        for launch in asked:
            name = variant_name(launch)
            if name in seen:
                continue
            seen.add(name)
            try:
                compile_one(code_of(backend, target), launch)
            except Exception as error:  # the compiler raises what it likes
                causes = [error]
                while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
                    causes.append(cause)  # type: ignore[arg-type]
                yield f"{backend}, {target}: {draw}\n    {name}: {str(causes[-1]).strip()[-300:]}"
                break


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a kernel did not compile, 2 where nothing of ours runs on the target."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz.compiled", description=__doc__)
    parser.add_argument("--target", required=True, help="an architecture, such as sm_90 or gfx942")
    parser.add_argument("--backend", action="append", default=[], help="a backend's name; may be repeated")
    parser.add_argument("--draws", type=int, default=20, help="kinds of calls a backend")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    try:
        find_node(arch=asked.target)
        names = [registry.canonical(name) for name in asked.backend] or [b.name for b in registry.all_backends()]
    except UsageError as error:
        parser.error(str(error))
    wrong = kernels = 0
    with tempfile.TemporaryDirectory() as cache, knobs.cache.scope():
        knobs.cache.dir = cache
        for name in names:
            seen: set[str] = set()
            for text in refused_by_the_compiler(name, asked.target, claimed(name, asked.target, asked.draws, asked.seed), seen):
                wrong += 1
                print(text)
            if seen:
                print(f"{name}, {asked.target}: {len(seen)} kernels")
            kernels += len(seen)
    if not kernels:
        print(f"no kernel of {', '.join(names)} is for {asked.target}", file=sys.stderr)
        return 2
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
