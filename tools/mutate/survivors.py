"""Why a mutant that nothing noticed is none that counts: it computes the same, or what no call asks of it."""

from __future__ import annotations

from collections.abc import Mapping

_SAME = "equivalent: "
_CPP, _MLA = "kernels/cpu/attention.cpp", "kernels/triton/mla/kernel.py"

REASONS: Mapping[tuple[str, ...], str] = {
    ("kernels/cpu/launch.py", "if out is None or out.stride(2) != 1: -> if True:"): _SAME
    + "the answer is copied into the given tensor",
    ("kernels/triton/launch.py", '"SAME_STRIDES": key.data.stride()[:2]'): _SAME
    + "value offsets are then computed, not shared",
    (_CPP, "|| -> &&", "return Dot::pairs"): _SAME + "float32 keys are copied instead of read where they lie",
    (_CPP, "&& -> ||", "const bool masked"): _SAME + "tiles that no mask touches are masked, too",
    (_CPP, "int64_t -> int32_t", "c.lse["): "out of contract: 2**31 rows of queries times heads are 256 GiB of output",
    (_MLA, "< -> <=", "s = tl.where("): _SAME
    + "a key at the limit is behind every row's position, or in the next split's tile",
    (_MLA, "0.0 -> 1.0", "mask=rows.real[:, None]"): _SAME + "rows that are not there are computed and not written",
    (_MLA, "maximum -> minimum", "whole ="): _SAME + "every tile then runs with a mask",
    ("backends/flex_attention.py", "<= -> <", "if softmax.softcap"): _SAME + "a function that changes no score is then applied",
}
"""By the file and parts of the mutant's name (`Mutant.name`). What is not here counts as missed."""


def reason(name: str) -> str:
    """Why the mutant of that name does not count; "" where it does."""
    plain = " ".join(name.split())
    return next(
        (why for (path, *parts), why in REASONS.items() if plain.startswith(path) and all(p in plain for p in parts)), ""
    )
