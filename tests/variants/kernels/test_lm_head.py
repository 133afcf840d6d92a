"""Norm + LM head + argmax: the right token, the lowest among equals, and its logit."""

import pytest
import torch

from tests.kernel_gates import (
    DTYPES,
    ROWS,
    assert_deterministic,
    assert_pdl_changes_nothing,
    guard_outputs,
    randn,
    strided,
    tolerance,
)  # fmt: skip
from variants.kernels.lm_head import (
    norm_lm_head_argmax,
    norm_lm_head_argmax_reference,
    norm_lm_head_argmax_triton,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:::triton.runtime.interpreter")
EPS = 1e-6
SHAPES = [(136, 150), *(pytest.param(*s, marks=pytest.mark.gpu) for s in [(1024, 151_936), (576, 49_152), (736, 5125)])]


def inputs(rows, h, vocab, dtype):
    x, residual = (strided(randn(rows, h, dtype=dtype, seed=s + rows)) for s in (0, 1))
    return x, residual, randn(h, dtype=dtype, seed=2), randn(vocab, h, dtype=dtype, seed=3, scale=0.05)


def logits_of(x, residual, gamma, weight):
    """Logits in float64 and the largest error a sum of rounded products may have."""
    s = (x + residual).double()
    r = torch.rsqrt(s.square().mean(1, keepdim=True) + EPS)
    a = s * gamma.double() * r
    return a @ weight.double().T, a.norm(dim=1) * weight.double().norm(dim=1).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("h", "vocab"), SHAPES)
def test_the_token_is_the_best_within_rounding(h, vocab, rows, dtype, monkeypatch):
    x, residual, gamma, weight = inputs(rows, h, vocab, dtype)
    guarded = guard_outputs(monkeypatch)
    tokens, best = norm_lm_head_argmax_triton(x, residual, gamma, weight, EPS)
    guarded.check()
    assert tokens.dtype == torch.int64
    logits, size = logits_of(x, residual, gamma, weight)
    # Rounding x * gamma moves a logit by at most u |a| |w| (Cauchy and Schwarz), the sums by less than tolerance.
    slack = size * tolerance(dtype, sums=h)
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    assert bool((chosen >= logits.max(1).values - 2 * slack).all())
    assert bool(((best.double() - chosen).abs() <= slack).all())


@pytest.mark.parametrize("rows", [1, 7, 65])
def test_equal_logits_go_to_the_lowest_token(rows):
    x, _, gamma, weight = inputs(rows, 136, 150, torch.float32)
    # Every logit of the first 50 is negative, all others are exactly 0.
    weight[:50] = -(x[0] * gamma).sign()
    weight[50:] = 0
    tokens, _ = norm_lm_head_argmax_triton(x[:1].expand(rows, -1), x[:1].expand(rows, -1), gamma, weight, EPS)
    assert tokens.tolist() == [50] * rows


@pytest.mark.parametrize("rows", [5, 17])
def test_broken_rows_yield_a_token_and_leave_others_alone(rows):
    x, residual, gamma, weight = inputs(rows, 136, 150, torch.float32)
    expected, _ = norm_lm_head_argmax_triton(x, residual, gamma, weight, EPS)
    x[0, 5], x[1], residual[1] = float("nan"), 0, 0
    tokens, best = norm_lm_head_argmax_triton(x, residual, gamma, weight, EPS)
    assert tokens[:2].tolist() == [0, 0]
    assert best[1] == 0
    assert torch.equal(tokens[2:], expected[2:])


def test_no_rows_and_the_public_function():
    assert norm_lm_head_argmax_triton(*inputs(0, 136, 150, torch.float32), EPS)[0].shape == (0,)
    args = (*inputs(3, 136, 150, torch.float32), EPS)
    assert torch.equal(norm_lm_head_argmax(*args)[0], norm_lm_head_argmax_reference(*args)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 4, 16, 64, 200])
def test_deterministic_and_the_same_under_pdl(rows):
    x, residual, gamma, weight = inputs(rows, 1024, 8192, torch.bfloat16)
    embed = randn(8192, 1024, dtype=torch.bfloat16, seed=9)
    assert_deterministic(lambda: norm_lm_head_argmax_triton(x, residual, gamma, weight, EPS)[0])

    def chain(pdl):
        y = x
        for _ in range(3):
            tokens, best = norm_lm_head_argmax_triton(y, residual, gamma, weight, EPS, pdl)
            y = embed[tokens]
        return torch.stack((tokens.double(), best.double()))

    assert_pdl_changes_nothing(chain, lambda: x.normal_())
