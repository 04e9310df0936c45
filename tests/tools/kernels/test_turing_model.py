"""The analytical model: its arithmetic, and that it reads a loop out of real machine code."""

import pytest

from tools.kernels import turing_model as model

LISTING = """
.L_x_1:
        /*0000*/                   HMMA.1688.F32 R0, R4, R6, R0 ;
        /*0010*/                   FFMA R1, R2, R3, R4 ;
        /*0020*/                   MUFU.EX2 R1, R2 ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0040*/                   HMMA.1688.F32 R0, R4, R6, R0 ;
        /*0050*/                   HMMA.1688.F32 R0, R4, R6, R0 ;
        /*0060*/               @P1 BRA `(.L_x_2) ;
        /*0070*/                   EXIT ;
"""


def test_peaks_are_those_of_the_data_sheets():
    assert model.RTX_2080_TI.peak == pytest.approx(53.8e12, rel=0.002)
    assert model.T4.peak == pytest.approx(65e12, rel=0.01)


def test_the_densest_loop_is_taken():
    assert model.main_loop(LISTING) == {"HMMA.1688.F32": 2, "BRA": 1}


def test_no_loop_is_an_error():
    with pytest.raises(ValueError, match="no loop with matrix instructions"):
        model.main_loop("/*0000*/ EXIT ;")


def test_the_documented_table_is_the_models(repo_root):
    assert model.table() in (repo_root / "docs" / "guides" / "turing.md").read_text()
