"""Reading machine code: what is a matrix instruction, and what the AMD compiler says at the end of its assembly."""

from __future__ import annotations

from collections import Counter

import pytest

from attnkit.errors import UnsupportedError
from tools.kernels.machine_code import Cost, inspect, inspect_amdgcn

AMD = """\
	.text
kernel:
; %bb.0:
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	v_mfma_f32_32x32x8_bf16 a[0:15], v[2:3], v[4:5], a[0:15]
	v_mfma_f32_32x32x8_bf16 a[0:15], v[6:7], v[8:9], a[0:15]
	v_mul_f32_e32 v1, v2, v3
	s_endpgm
	.amdhsa_private_segment_fixed_size 0
amdhsa.kernels:
  - .agpr_count:     16
    .private_segment_fixed_size: 24
    .sgpr_spill_count: 3
    .vgpr_count:     40
    .vgpr_spill_count: 6
"""


def test_amd_assembly() -> None:
    cost = inspect({"amdgcn": AMD})
    assert (cost.registers, cost.spill_bytes, cost.stack_bytes, cost.lane_spills) == (40, 24, 24, 3)
    assert cost.matrix() == {"v_mfma_f32_32x32x8_bf16": 2}
    assert cost.instructions["v_mul_f32_e32"] == 1 and cost.instructions["s_endpgm"] == 1


def test_assembly_without_its_facts_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="vgpr_spill_count"):
        inspect_amdgcn(AMD.replace("    .vgpr_spill_count: 6\n", ""))
    with pytest.raises(UnsupportedError, match="neither PTX nor AMD"):
        inspect({"llir": ""})
    with pytest.raises(UnsupportedError, match="names no target"):
        inspect({"ptx": ".version 8.7"})


def test_matrix_instructions_of_every_vendor_and_nothing_else() -> None:
    matrix = [
        "HMMA.16816.F32.BF16",
        "IMMA.8816.S8.S8",
        "HGMMA.64x128x16.F32",
        "QGMMA.64",
        "UTCHMMA",
        "UTCQMMA.2CTA",
        "DMMA.884",
    ]
    matrix += ["v_mfma_f32_16x16x16_f16", "v_wmma_f32_16x16x16_bf16", "v_smfmac_f32_16x16x32_bf16"]
    other = ["FFMA", "HFMA2.MMA", "UTCBAR", "UTMALDG.4D", "IMAD.MOV", "v_fma_f32", "v_mul_f32_e32", "s_waitcnt"]
    found = Cost(1, 0, 0, Counter(matrix + other)).matrix()
    assert set(found) == set(matrix)
