"""The census inside a process of its own: `python -m attnkit.engines.vllm.census_child OPTION…` prints one line of JSON.

vLLM's own parser and configuration read the options; its own model class is built on the meta device, without weights and
without device memory; every attention layer that registers is written down. With several ranks a stand-in process group of the
real world size takes the place of the real one: nothing is sent.

The interface is vLLM's internal one; what has moved ends the process with the reason.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

from attnkit.engines.vllm.layer_rows import layers

MARK = "attnkit-census "


def main(options: list[str]) -> None:
    """Build and print."""
    gc.disable()  # it would look through vLLM's modules again and again while they are imported, and finds nothing
    print(MARK + json.dumps(build(options)), flush=True)


def build(options: list[str]) -> dict[str, Any]:
    """What vLLM makes of the options; again in one process only without further ranks."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    _inspect_here()
    _ones_for_meta()
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    given, _ = parser.parse_known_args(options)
    args = EngineArgs.from_cli_args(given)
    args.load_format, args.skip_tokenizer_init, args.disable_log_stats = "dummy", True, True
    for name in [name for name in vars(args) if name.startswith("data_parallel_")]:  # every replica builds the same layers
        setattr(args, name, getattr(EngineArgs, name))
    ranks = args.tensor_parallel_size * args.pipeline_parallel_size
    tensor = args.tensor_parallel_size
    if ranks > 1:
        args.distributed_executor_backend = "external_launcher" if args.distributed_executor_backend is None else "mp"
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    config = args.create_engine_config()
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model

    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            stand_in_group(ranks, tensor, args.pipeline_parallel_size)
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(config.model_config.dtype)
        try:
            with torch.device("meta"):
                model = initialize_model(vllm_config=config)
        finally:
            torch.set_default_dtype(dtype)
    return {
        "model": config.model_config.model,
        "architecture": config.model_config.architectures[0] if config.model_config.architectures else None,
        "ranks": {"tensor": tensor, "pipeline": args.pipeline_parallel_size},
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "block_size": config.cache_config.block_size,
        "layers": layers(config, model),
    }


def _inspect_here() -> None:
    """Look at model classes in this process: vLLM starts another for each, so that its own stays without CUDA."""
    from vllm.model_executor.models import registry

    if hasattr(registry, "_run_in_subprocess"):
        registry._run_in_subprocess = lambda look: look()


def _ones_for_meta() -> None:
    """A few models read a small tensor while they are built (ALiBi's slopes, an activation's constants); on the meta device
    there is nothing to read, and ones do: that the layer has them is what is counted."""
    import torch

    def readable(real: Any) -> Any:
        return lambda tensor: real(torch.ones(tensor.shape, dtype=tensor.dtype, device="cpu") if tensor.is_meta else tensor)

    for name in ("tolist", "item", "cpu"):
        if not hasattr(torch.Tensor, f"attnkit_{name}"):
            setattr(torch.Tensor, f"attnkit_{name}", getattr(torch.Tensor, name))
            setattr(torch.Tensor, name, readable(getattr(torch.Tensor, name)))


def stand_in_group(ranks: int, tensor: int, pipeline: int) -> None:
    """vLLM's groups, of the real world size, over torch's fake backend: every rank but ours is imagined."""
    import torch
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from vllm.distributed import parallel_state

    new_group = torch.distributed.new_group

    def fake_group(*args: Any, **named: Any) -> Any:
        return new_group(*args, **{**named, "backend": "fake"})

    real_group = parallel_state.init_model_parallel_group

    def quiet_group(*args: Any, **named: Any) -> Any:  # neither shared memory nor a queue to ranks that are not there
        return real_group(*args, **{**named, "use_device_communicator": False, "use_message_queue_broadcaster": False})

    parallel_state.init_model_parallel_group = quiet_group
    torch.distributed.init_process_group(backend="fake", rank=0, world_size=ranks, store=FakeStore())
    torch.distributed.new_group = fake_group
    parallel_state.init_distributed_environment(world_size=ranks, rank=0, local_rank=0, backend="gloo")
    parallel_state.initialize_model_parallel(tensor, pipeline)


if __name__ == "__main__":
    main(sys.argv[1:])
