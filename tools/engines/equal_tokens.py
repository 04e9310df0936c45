"""Greedy tokens of vLLM's own attention and of attnkit's inside the same vLLM, side by side.

    python -m tools.engines.equal_tokens --backend TORCH_SDPA --models llama,qwen3 --prompts 32 --tokens 128 --out FILE

On a GPU vLLM's backend is named, too: --own TRITON_ATTN; ours goes in the place of CUSTOM. There vLLM's Triton kernels multiply
float32 in TF32, which alone changes tokens: they are asked for IEEE (TRITON_F32_DEFAULT) unless --tf32 is given.

Models are generated: random weights, wide enough that the next token depends on what is attended to (with the usual
small weights a random model repeats one token whatever its attention does; `distinct` in the result says how many differ).
float32, greedy, prompts of different lengths half of which share a prefix, prefix caching on, prefill in chunks, all prompts at
once. (For MLA models vLLM on a CPU without AMX switches both off by itself.) Each engine runs in a process of its own, vLLM's
and ours in turn, `--rounds` times; in each it answers fresh prompts `--repeats` times. Which backend ran is read from its log.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attnkit.engines.vllm.log import backend_from_log
from attnkit.engines.vllm.plugin import VARIABLE, slot_here
from attnkit.errors import EXIT_CHECK_FAILED, EXIT_OK, AttnkitError, UsageError, require_packages, unknown_name
from attnkit.kernels.cpu import library as cpu_kernels

VOCABULARY, CONTEXT = 512, 1024
WARM_UP = 999
"""Seed of prompts that no repeat asks."""
LOG_VARIABLE = "ATTNKIT_EQUAL_TOKENS_LOG"
"""A file that gets the whole output of an engine that failed."""
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4},
    "qwen3": {"model_type": "qwen3", "num_attention_heads": 8, "num_key_value_heads": 2},
    "mistral-window": {"model_type": "mistral", "num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 48},
    "gemma2": {
        "model_type": "gemma2",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 48,
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 64,
        "tie_word_embeddings": True,
    },
    "deepseek": {
        "model_type": "deepseek_v2",
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        # as DeepSeek's own configurations have it; without it vLLM 0.32 takes its CPU rotary kernel, which reads MLA's views as
        # if they were contiguous and turns wrong rows (tests/engines/test_vllm_mla.py)
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": CONTEXT // 4,
        },
        "first_k_dense_replace": 2,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "n_group": 1,
        "topk_group": 1,
    },
}
"""config.json of each model over `_COMMON`: MHA; GQA 4:1 with normalised queries and keys; MQA with a sliding window; softcap
with a window in every other layer; multi-head latent attention at DeepSeek's widths."""
LARGE: dict[str, dict[str, Any]] = {
    "llama-8b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 500000.0,
    },
}
"""For speeds alone, by name only: vLLM fills the weights itself (load_format=dummy), so that the tokens say nothing."""


@dataclass(frozen=True)
class Run:
    """One engine's answers.

    Args:
        backend: what its log says computed the attention.
        tokens: the generated token ids of each prompt, repeat after repeat.
        seconds: of each repeat's generation, without the start. vllm: its version. device: what it ran on.
    """

    backend: str | None
    tokens: list[list[int]]
    seconds: list[float]
    vllm: str
    device: str

    def tokens_per_s(self) -> list[float]:
        """Generated tokens a second in each repeat."""
        each = sum(map(len, self.tokens)) / len(self.seconds)
        return [each / seconds for seconds in self.seconds]


@dataclass(frozen=True)
class Comparison:
    """Two engines on one model. The speeds mean something only in comparison, and little where `load_before` is high.

    Args:
        prompts: different prompts in all. tokens: generated for each. equal: prompts with the very same tokens in every round.
        distinct: different tokens in all answers. first_difference: (prompt, position) or None.
        own, ours: backend by each engine's log.
        own_tokens_per_s, ours_tokens_per_s: medians of generated tokens a second, over repeats and rounds.
        ratios: ours / own, repeat by repeat and round by round; ratio: their median.
        device: what both ran on. dtype: of the model.
    """

    model: str
    prompts: int
    tokens: int
    equal: int
    distinct: int
    own: str | None
    ours: str | None
    own_tokens_per_s: float
    ours_tokens_per_s: float
    ratio: float
    ratios: list[float]
    vllm: str
    device: str
    dtype: str
    first_difference: tuple[int, int] | None = field(default=None)


def make_model(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """Write model `kind` into `folder`, without a tokenizer: `MODELS` with random float32 weights, `LARGE` with none."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(**(_COMMON | (MODELS | LARGE)[kind]))
    if kind in LARGE:
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)
        return folder
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if config.tie_word_embeddings:  # else the last token's own embedding outweighs what was attended to, and repeats itself
        model.get_input_embeddings().weight.data.mul_(0.05)
    model.save_pretrained(folder)
    return folder


def prompts(count: int, *, seed: int = 0) -> list[list[int]]:
    """Token ids of `count` prompts: lengths from 3 to 250, every second one begins with the same 140 tokens."""
    import random

    draw = random.Random(seed)
    shared = [draw.randrange(2, VOCABULARY) for _ in range(140)]
    found = []
    for index in range(count):
        own = [draw.randrange(2, VOCABULARY) for _ in range(draw.randrange(3, 110))]
        found.append(shared + own if index % 2 else own)
    return found


@dataclass(frozen=True)
class Serving:
    """How both engines are run.

    Args:
        count: prompts in a repeat. tokens: generated for each. repeats: how often, with fresh prompts each time.
        dtype: of the model. tf32: leave vLLM's Triton kernels their default for float32.
        sequences: at most at once. chunk: at most so many new tokens in a step.
        own: vLLM's backend by name; None leaves it to vLLM.
        graphs: batches of decodes run from captured graphs, on GPUs; else everything is launched anew in each step.
        timeout: seconds for one engine.
    """

    count: int = 32
    tokens: int = 128
    repeats: int = 1
    dtype: str = "float32"
    tf32: bool = False
    sequences: int = 16
    chunk: int = 128
    own: str | None = None
    graphs: bool = False
    timeout: float = 900.0


def run_engine(model: Path, serving: Serving, backend: str | None = None) -> Run:
    """Generate with an offline vLLM in a process of its own.

    Args:
        backend: attnkit's backend through the plugin; None leaves vLLM's own.

    Raises:
        AttnkitError: the engine failed; the message ends with its last lines.
    """
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {"VLLM_LOGGING_LEVEL": "INFO", "HF_HUB_OFFLINE": "1"}
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if not serving.tf32:
        environment.setdefault("TRITON_F32_DEFAULT", "ieee")
    if backend is not None:
        environment[VARIABLE] = backend
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        child = subprocess.run(
            [sys.executable, "-m", "tools.engines.equal_tokens", "--child", str(model), str(answer)],
            input=json.dumps(asdict(serving)),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=serving.timeout,
            check=False,
        )
        lines = child.stdout.splitlines()
        if child.returncode or not answer.is_file():
            last = "\n".join([line for line in lines if "Error" in line][:10] or lines[-20:])
            log = os.environ.get(LOG_VARIABLE)
            if log:
                with Path(log).open("a", encoding="utf-8") as file:
                    file.write(child.stdout)
            raise AttnkitError(f"vLLM ended with {child.returncode} on {model.name} ({backend or 'its own backend'}):\n{last}")
        found = json.loads(answer.read_text(encoding="utf-8"))
    return Run(backend_from_log(lines, found["vllm"]), found["tokens"], found["seconds"], found["vllm"], found["device"])


def compare(kind: str, serving: Serving, *, backend: str, rounds: int = 1) -> Comparison:
    """Both engines on one model, in turn.

    Raises:
        AttnkitError: an engine failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(kind, Path(folder, kind))
        runs = [run_engine(model, serving, name) for _ in range(rounds) for name in (None, backend)]
    own, ours = runs[0], runs[1]
    answers = list(zip(*(run.tokens for run in runs), strict=True))  # of every run, prompt by prompt
    equal = [all(answer == first for answer in others) for first, *others in answers]
    first = None
    if not all(equal):
        differing = equal.index(False)
        step = next(i for i, found in enumerate(zip(*answers[differing], strict=True)) if len(set(found)) > 1)
        first = differing, step
    speeds = [[speed for run in runs[side::2] for speed in run.tokens_per_s()] for side in (0, 1)]
    ratios = [b / a for a, b in zip(*speeds, strict=True)]
    return Comparison(
        model=kind,
        prompts=serving.count * serving.repeats,
        tokens=serving.tokens,
        equal=sum(equal),
        distinct=len({token for answer in own.tokens for token in answer}),
        own=own.backend,
        ours=ours.backend,
        own_tokens_per_s=round(statistics.median(speeds[0]), 1),
        ours_tokens_per_s=round(statistics.median(speeds[1]), 1),
        ratio=round(statistics.median(ratios), 3),
        ratios=[round(ratio, 3) for ratio in ratios],
        vllm=own.vllm,
        device=own.device,
        dtype=serving.dtype,
        first_difference=first,
    )


def _child(model: str, answer: str, serving: Serving) -> None:
    import vllm
    from vllm.platforms import current_platform

    more: dict[str, Any] = {}
    device = f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
    if not current_platform.is_cpu():
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        device = str(current_platform.get_device_name())
        more["gpu_memory_utilization"] = float(os.environ.get("ATTNKIT_GPU_MEMORY", "0.5"))
        place = slot_here() if os.environ.get(VARIABLE) else serving.own
        if place is not None:
            more["attention_backend"] = place
    if serving.graphs:
        more["compilation_config"] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=model,
        dtype=serving.dtype,
        skip_tokenizer_init=True,
        enforce_eager=not serving.graphs,
        max_model_len=CONTEXT,
        max_num_seqs=serving.sequences,
        max_num_batched_tokens=serving.chunk,
        enable_prefix_caching=True,
        enable_chunked_prefill=True,
        load_format="dummy" if Path(model).name in LARGE else "auto",
        **more,
    )

    def asked(count: int, seed: int) -> list[dict[str, list[int]]]:
        return [{"prompt_token_ids": ids} for ids in prompts(count, seed=seed)]

    def sampling(tokens: int) -> Any:
        return SamplingParams(temperature=0.0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False)

    engine.generate(
        asked(serving.sequences, WARM_UP), sampling(8), use_tqdm=False
    )  # what is compiled on first use is not timed
    found: dict[str, Any] = {"tokens": [], "seconds": [], "vllm": vllm.__version__, "device": device}
    for seed in range(serving.repeats):
        batch = asked(serving.count, seed)
        started = time.monotonic()
        outputs = engine.generate(batch, sampling(serving.tokens), use_tqdm=False)
        found["seconds"].append(time.monotonic() - started)
        found["tokens"] += [list(output.outputs[0].token_ids) for output in outputs]
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


def main() -> int:
    """Compare, print, write the report (after each model); exit code 1 where any token differs or our backend did not run."""
    if sys.argv[1:2] == ["--child"]:
        model, answer = sys.argv[2:4]
        _child(model, answer, Serving(**json.load(sys.stdin)))
        return EXIT_OK
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backend", default="TORCH_SDPA")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--own", help="vLLM's backend, where it may be chosen (not on CPU)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--timeout", type=float, default=900.0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    models = asked.models.split(",")
    try:
        for model in models:
            if model not in MODELS | LARGE:
                raise unknown_name("model", model, MODELS | LARGE)
        require_packages("tools.engines.equal_tokens", "torch", "transformers", "vllm")
    except UsageError as error:
        parser.error(str(error))
    load = os.getloadavg()[0]
    serving = Serving(
        count=asked.prompts,
        tokens=asked.tokens,
        repeats=asked.repeats,
        dtype=asked.dtype,
        tf32=asked.tf32,
        sequences=asked.sequences,
        chunk=asked.chunk,
        own=asked.own,
        graphs=asked.graphs,
        timeout=asked.timeout,
    )
    document: dict[str, Any] = {
        "kind": "demo",
        "what": f"greedy {asked.dtype} tokens of vLLM's own attention and of attnkit's inside the same vLLM",
        "command": "python -m tools.engines.equal_tokens " + " ".join(sys.argv[1:]),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "attnkit_cpu_kernels": cpu_kernels.find() is not None,
        "load_before": round(load, 1),
    }
    results: list[Comparison] = []
    failed: dict[str, str] = {}
    for model in models:
        try:
            results.append(compare(model, serving, backend=asked.backend, rounds=asked.rounds))
        except (AttnkitError, subprocess.TimeoutExpired) as error:  # the other models say their part all the same
            failed[model] = str(error)
            print(f"{model}: {error}", file=sys.stderr, flush=True)
        else:
            document["device"] = results[-1].device
            print(json.dumps(asdict(results[-1])), flush=True)
        document |= {"load_after": round(os.getloadavg()[0], 1), "results": [asdict(result) for result in results]}
        if failed:
            document["failed"] = failed
        if asked.out:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    good = not failed and all(r.equal == r.prompts and r.ours == asked.backend for r in results)
    return EXIT_OK if good else EXIT_CHECK_FAILED


if __name__ == "__main__":
    sys.exit(main())
