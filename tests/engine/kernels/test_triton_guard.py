"""The guard around Triton: kernels import and their twins run where there is none."""

import subprocess
import sys

import pytest

from engine.kernels._triton import INTERPRETED, cdiv, next_power_of_2, pdl_options

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from engine.kernels import activation, decode_attention, kv_store, norm, prefill_attention, rope
from variants.kernels import gate_up_silu, linear_add, lm_head, norm_linear, qkv_post
x = torch.ones(2, 8)
y, s = norm_linear.norm_linear(norm.rms_norm(x, None, 0.0), x, torch.eye(8), None, 0.0)
assert torch.equal(y, x) and torch.equal(s, 2 * x), (y, s)
"""


def test_twins_run_without_triton():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("n", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (576, 1024), (1024, 1024)])
def test_next_power_of_2(n, power):
    assert next_power_of_2(n) == power


def test_cdiv_rounds_up():
    assert [cdiv(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_dependent_launches_are_off_unless_asked_for_and_in_the_interpreter():
    assert pdl_options(False) == {"PDL": False}
    assert pdl_options(True) == ({"PDL": False} if INTERPRETED else {"PDL": True, "launch_pdl": True})
