"""What transformers knows of model types, beside what attnkit's reader makes of them.

    python -m tools.engines.model_types defaults    writes attnkit/data/model-types.json from the configuration classes
    python -m tools.engines.model_types table       writes tests/data/model-types.json: every type, and the reader's answer

Needs transformers; the files are committed, and the default tests read them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from attnkit.errors import AttnkitError, NotUnderstoodError
from attnkit.select.model_config import read_config
from attnkit.select.model_fields import class_record
from attnkit.select.model_types import RULES, SAME_TOWER, WRAPPERS

ROOT = Path(__file__).parents[2]
DEFAULTS = ROOT / "attnkit/data/model-types.json"
TABLE = ROOT / "tests/data/model-types.json"


def write_defaults() -> None:
    """Defaults of every type that has a rule, and of the parts of those that are made of parts."""
    import transformers
    from transformers import CONFIG_MAPPING

    wanted = [*RULES, *WRAPPERS, *SAME_TOWER]
    types: dict[str, Any] = {}
    while wanted:
        name = wanted.pop()
        if name in types or name not in CONFIG_MAPPING:
            continue
        types[name] = class_record(CONFIG_MAPPING[name])
        wanted += types[name]["parts"].values()
    head = f'{{\n "source": "configuration classes of transformers {transformers.__version__}",\n "types": {{\n'
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(types[name])}" for name in sorted(types))
    DEFAULTS.write_text(f"{head}{rows}\n }}\n}}\n", encoding="utf-8")


def answer(config: dict[str, Any], name: str) -> tuple[str, Any]:
    """How the reader answers: ("read", kinds), ("not understood", why) or ("refused", why)."""
    try:
        need = read_config(config, name)
    except NotUnderstoodError as error:
        return "not understood", str(error)
    except AttnkitError as error:
        return "refused", str(error)
    kinds = [
        {
            "role": k.role,
            "count": k.count,
            "op": k.spec.op,
            "heads": [k.spec.num_heads, k.spec.num_kv_heads],
            "dims": [k.spec.head_dim, k.spec.value_dim],
            "window": k.window,
            "features": sorted(k.spec.features),
        }
        for k in need.layers
    ]
    rest = [{"other": o.what, "count": o.count} for o in need.other]
    return ("not understood" if need.not_understood else "read"), [*kinds, *rest, *need.not_understood]


def write_table() -> None:
    """Every model type of transformers, its class's defaults as a config.json, and the reader's answer to it."""
    import transformers
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    rows: dict[str, Any] = {}
    for name in sorted(CONFIG_MAPPING_NAMES):
        with tempfile.TemporaryDirectory() as folder:
            try:
                CONFIG_MAPPING[name]().save_pretrained(folder)
                config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
            except Exception as error:  # some classes have no defaults of their own
                rows[name] = ["no default configuration", f"{type(error).__name__}"]
                continue
        rows[name] = list(answer(config, name))
    TABLE.write_text(
        json.dumps({"source": f"transformers {transformers.__version__}", "types": rows}, indent=None, sort_keys=True)
        .replace('], "', '],\n"')
        .replace('"types": {', '"types": {\n')
        + "\n",
        encoding="utf-8",
    )
    counts: dict[str, int] = {}
    for kind, _ in rows.values():
        counts[kind] = counts.get(kind, 0) + 1
    print(counts)


if __name__ == "__main__":
    {"defaults": write_defaults, "table": write_table}[sys.argv[1] if len(sys.argv) > 1 else ""]()
