"""vLLM's census against attnkit's reader, for every architecture that both can be asked about.

    python -m tools.engines.census_table [MODEL_TYPE …]    adds to tests/data/model-census.json; needs vLLM and transformers

The configurations are the defaults of transformers' classes, with the architecture that goes with the type. Each row is "same",
"different" (with both sides), "not understood" or "refused" (by the reader), or what vLLM says why it does not build the model.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[2] / "tests/data/model-census.json"


def kinds_of_reader(config: dict[str, Any]) -> tuple[str, Any]:
    """("read", counted kinds) or how the reader refuses."""
    from attnkit.errors import AttnkitError, NotUnderstoodError
    from attnkit.select.model_config import read_config

    try:
        need = read_config(config, str(config.get("model_type")))
    except NotUnderstoodError:
        return "not understood", None
    except AttnkitError as error:
        return "refused", str(error)[:200]
    return "read", counted(need.layers)


def counted(kinds: Any) -> dict[str, int]:
    """Kinds of the language model as text, with their numbers. A window's size is left to the notes: who counts the own token
    among it differs by one."""
    found: Counter[str] = Counter()
    for kind in kinds:
        if kind.role in ("vision", "audio"):
            continue
        spec = kind.spec
        features = sorted(spec.features - {"lse", "prefix_lm"})
        shape = f"{spec.num_heads}/{spec.num_kv_heads} x {spec.head_dim}/{spec.value_dim}"
        found[f"{kind.role} {spec.op} {shape} {' '.join(features)}".strip()] += kind.count
    return dict(found)


def compare(model_type: str, architecture: str) -> list[Any]:
    """One row."""
    from transformers import CONFIG_MAPPING

    from attnkit.engines.vllm.census import count
    from attnkit.engines.vllm.census_child import build

    with tempfile.TemporaryDirectory() as folder:
        try:
            made = CONFIG_MAPPING[model_type](architectures=[architecture])
            made.save_pretrained(folder)
        except Exception as error:
            return ["no default configuration", type(error).__name__]
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        how, ours = kinds_of_reader(config)
        try:
            theirs = counted([one.kind for one in count(build(["--model", folder, "--max-model-len", "512"])).counted])
        except BaseException as error:  # vLLM raises SystemExit, too
            return ["vLLM does not build it", f"{type(error).__name__}: {str(error)[:160]}", how]
    if how != "read":
        return [how, ours, theirs]
    return ["same", theirs] if ours == theirs else ["different", {"reader": ours, "vLLM": theirs}]


def main(only: list[str]) -> None:
    """Write a row at a time: a run that ends early has what it found."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import vllm
    from transformers.models.auto import modeling_auto
    from vllm.model_executor.models.registry import ModelRegistry

    supported = set(ModelRegistry.get_supported_archs())
    names: dict[str, str] = {}
    for name, mapping in vars(modeling_auto).items():
        if name.endswith("_MAPPING_NAMES"):
            for model_type, architecture in mapping.items():
                for one in architecture if isinstance(architecture, tuple | list) else (architecture,):
                    if one in supported:
                        names.setdefault(model_type, one)
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["rows"] if TABLE.exists() else {}
    for model_type in sorted(names):
        if (only and model_type not in only) or (not only and model_type in rows):
            continue
        rows[model_type] = [names[model_type], *compare(model_type, names[model_type])]
        print(model_type, rows[model_type], flush=True)
        text = json.dumps({"source": f"vLLM {vllm.__version__} on CPU", "rows": rows}, sort_keys=True)
        TABLE.write_text(text.replace('], "', '],\n"') + "\n", encoding="utf-8")
    print(Counter(row[1] for row in rows.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
