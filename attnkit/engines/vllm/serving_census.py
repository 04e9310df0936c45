"""The census inside the processes that serve: each worker of vLLM writes down, for boot, the layers that it really built.

The channel is a directory of boot's own (mode 0700), named to the engine in an environment variable; each worker puts one file
there, in one step, once its cache is allocated: layers and backends are settled then, a drafter's among them, and nothing was
computed yet. vLLM's plugin installs it in every process; only a worker ever speaks.

The hook is `WorkerWrapperBase.initialize_from_config`, through which every executor of vLLM goes on every platform. Read in the
source of 0.25.1 and 0.32.0; run with 0.32.0 on CPU. Nothing here keeps an engine from serving: what has moved is said instead.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnkit.engines.vllm.census import Census, count
from attnkit.errors import AttnkitError, UsageError
from attnkit.jsonio import read_json, shorten, write_atomically

MOST_BYTES = 4 * 2**20
"""Of one worker's file: a model of a hundred layers needs a twentieth of a megabyte."""
MOST_FILES = 1024
SILENCE = (
    "no worker said which attention layers it built, so they were not compared with the validated ones: attnkit's plugin was "
    "not loaded there, or this is no vLLM"
)


def install(directory: str) -> None:
    """Let this process's workers write into `directory` once they have built their layers. Again is the same."""
    try:
        from vllm.v1.worker.worker_base import WorkerWrapperBase

        initialise = WorkerWrapperBase.initialize_from_config
    except (ImportError, AttributeError) as error:
        _write(directory, {"problem": f"vLLM's workers are built otherwise: {type(error).__name__}: {error}"})
        return
    if hasattr(initialise, "attnkit"):
        return

    @functools.wraps(initialise)
    def and_say(wrapper: Any, *args: Any, **named: Any) -> Any:
        result = initialise(wrapper, *args, **named)
        say(directory, wrapper.worker)
        return result

    and_say.attnkit = True  # type: ignore[attr-defined]
    WorkerWrapperBase.initialize_from_config = and_say


def say(directory: str, worker: Any) -> None:
    """Write down what a worker built; what cannot be read of it is written instead."""
    try:
        found = built(worker)
    except Exception as error:  # vLLM's internals: whatever moved must not end an engine that serves
        found = {"problem": f"a worker's layers cannot be read: {type(error).__name__}: {error}"}
    _write(directory, found)


def built(worker: Any) -> dict[str, Any]:
    """A worker's layers: the document of `census_child`, with the version, the rank and how many ranks this machine has."""
    import vllm

    from attnkit.engines.vllm.layer_rows import layers

    config = worker.vllm_config
    parallel = config.parallel_config
    architectures = config.model_config.architectures
    return {
        "version": str(vllm.__version__),
        # without experts vLLM makes every replica number 0 of 1, and keeps its number in the index
        "replica": getattr(parallel, "data_parallel_index", getattr(parallel, "data_parallel_rank", 0)),
        "rank": worker.rank,
        "here": getattr(parallel, "local_world_size", parallel.world_size),
        "model": config.model_config.model,
        "architecture": architectures[0] if architectures else None,
        "ranks": {"tensor": parallel.tensor_parallel_size, "pipeline": parallel.pipeline_parallel_size},
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "block_size": config.cache_config.block_size,
        "layers": layers(config, worker.get_model()),
    }


def _write(directory: str, found: Mapping[str, Any]) -> None:
    with suppress(UsageError):  # silence is said by who listens
        write_atomically(Path(directory, f"{os.getpid()}.json"), json.dumps(found))


@dataclass(frozen=True)
class Rank:
    """One worker that spoke.

    Args:
        version: of its vLLM.
        replica, rank: which copy of the model (data parallel), and which rank of it.
        here: ranks of that copy on this machine.
        census: its layers.
    """

    version: str
    replica: int
    rank: int
    here: int
    census: Census


@dataclass(frozen=True)
class Spoken:
    """Everything that came through the channel.

    Args:
        ranks: the workers that spoke, in order.
        problems: what is missing or could not be read, in words; every rank's silence is among them.
    """

    ranks: tuple[Rank, ...]
    problems: tuple[str, ...]


def read(directory: Path | None, replicas: int = 1) -> Spoken:
    """What the workers have said so far. Files are read up to a size limit, and judged like anything from outside.

    Args:
        directory: None where there is no channel.
        replicas: copies of the model that serve on this machine.
    """
    ranks: list[Rank] = []
    problems: list[str] = []
    found_files = directory.glob("*.json") if directory is not None else ()
    files = sorted(path for path in found_files if not path.name.startswith("."))
    if len(files) > MOST_FILES:
        problems.append(f"{len(files)} files in the channel; {MOST_FILES} were read")
    for path in files[:MOST_FILES]:
        try:
            found = read_json(path, MOST_BYTES)
            if "problem" in found:
                problems.append(shorten(str(found["problem"]), 300))
                continue
            replica, rank, here = (int(found[name]) for name in ("replica", "rank", "here"))
            ranks.append(Rank(str(found["version"]), replica, rank, here, count(found)))
        except AttnkitError as error:
            problems.append(str(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"a worker's layers are not understood: {type(error).__name__}: {shorten(str(error))}")
    ranks.sort(key=lambda one: (one.replica, one.rank))
    for replica in sorted({one.replica for one in ranks}):
        heard = {one.rank: one.here for one in ranks if one.replica == replica}
        if len(heard) < max(heard.values()):
            problems.append(f"{len(heard)} of {max(heard.values())} ranks said which layers they built; the others may differ")
    if ranks and (told := len({one.replica for one in ranks})) < replicas:
        problems.append(f"workers of {told} of {replicas} replicas said which layers they built; the others may differ")
    if not ranks and not problems:
        problems.append(SILENCE)
    return Spoken(tuple(ranks), tuple(dict.fromkeys(problems)))
