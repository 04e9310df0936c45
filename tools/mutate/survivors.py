"""Why a mutant that nothing noticed is none that counts: it computes the same, or what no call asks of it."""

from __future__ import annotations

from collections.abc import Mapping

_SAME = "equivalent: "

REASONS: Mapping[tuple[str, str], str] = {
    ("kernels/cpu/launch.py", "if out is None or out.stride(2) != 1:"): _SAME + "the answer is copied into the given tensor",
    ("kernels/triton/launch.py", '"SAME_STRIDES": key.data.stride()[:2]'): _SAME
    + "value offsets are then computed, not shared",
    ("kernels/cpu/attention.cpp:284", "||"): _SAME + "float32 keys are copied instead of read where they lie",
    ("kernels/cpu/attention.cpp:454", "&&"): _SAME + "tiles that no mask touches are masked, too",
    ("kernels/cpu/attention.cpp:404", "int64_t"): "out of contract: 2**31 rows of queries times heads are 256 GiB of output",
    ("kernels/triton/mla/kernel.py:44", "<"): _SAME
    + "a key at the limit is behind every row's position, or the next split's tile",
    ("kernels/triton/mla/kernel.py:92", "0.0"): _SAME + "rows that are not there are computed and not written",
    ("kernels/triton/mla/kernel.py:98", "maximum"): _SAME + "every tile then runs with a mask",
}
"""By the beginning of the mutant's place and a part of the text that was there. What is not here counts as missed."""


def reason(name: str) -> str:
    """Why the mutant of that name does not count; "" where it does."""
    return next((why for (place, text), why in REASONS.items() if name.startswith(place) and text in name), "")
