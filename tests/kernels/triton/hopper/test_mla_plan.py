"""How the sm_90 MLA decode cuts its keys: by host numbers alone, filling the card without shredding short contexts."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed here")
pytest.importorskip("triton", reason="Triton is not installed here")

from hypothesis import given
from hypothesis import strategies as st

from attnkit.kernels.triton.hopper.mla_plan import MAX_SPLITS, TILE, choose_splits


@given(programs=st.integers(1, 4096), units=st.integers(1, 256), longest=st.integers(1, 1 << 20))
def test_a_power_of_two_that_gives_every_program_two_tiles(programs: int, units: int, longest: int) -> None:
    splits = choose_splits(programs, units, longest)
    assert 1 <= splits <= MAX_SPLITS
    assert splits & (splits - 1) == 0
    assert splits == 1 or longest > TILE * (2 * splits - 1)


def test_one_round_of_programs_where_that_is_possible() -> None:
    assert choose_splits(128, 132, 8192) == 1
    assert choose_splits(32, 132, 8192) == 4
    assert choose_splits(2, 132, 32768) == 64
    # 96 programs would leave a quarter of the card idle; three rounds of a quarter each do not.
    assert choose_splits(96, 132, 1 << 17) == 4
