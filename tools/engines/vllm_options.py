"""Which of vLLM's options take no value or several, from its own parser.

python -m tools.engines.vllm_options    writes attnkit/data/vllm-options.json; needs vLLM
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from attnkit.engines.vllm.arguments import spelling

DATA = Path(__file__).parents[2] / "attnkit/data/vllm-options.json"


def write() -> None:
    """Ask the installed vLLM's parser."""
    import vllm
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    none: set[str] = set()
    several: set[str] = set()
    for action in make_arg_parser(FlexibleArgumentParser())._actions:
        names = {spelling(option) for option in action.option_strings}
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            none |= names
        elif action.nargs in ("+", "*"):
            several |= names
    found = {"source": f"vLLM {vllm.__version__}", "none": sorted(none), "several": sorted(several)}
    DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
