"""A right variant earns its verdict, a wrong one does not, whichever way it is wrong.

Shape suffixes: T tokens, H hidden size.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.batch import Stream
from engine.ops import Ops
from engine.weights import Linear
from experiments.measuring import verdict
from experiments.measuring.verdict import Divergence, verify
from tests.experiments.measuring.sessions import PROTOCOL, session_of
from tests.shipped import VARIANT_NAMES


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_shipped_variants_are_right(variant: str, dtype: str) -> None:
    """On a model of odd sizes with every bias and scaled RoPE."""
    found = verify(session_of("tiny-llama", variant, dtype=dtype), PROTOCOL.verdict_tokens)
    assert found.ok, found.reason
    assert found.kl_mean < 1e-5
    assert found.first_divergence is None or (found.divergence_margin or 0) < 0.05
    # Prompt and answer of four requests, through prefill and through a turn of decode batches.
    assert found.positions == 4 * (2 * (PROTOCOL.verdict_tokens // 8) + sum(verdict.DECODE_SIZES))
    assert found.unfused_kl_mean is not None


class WrongEps(Ops):
    """Ten times the epsilon."""

    def norm(self, stream: Stream, weight_H: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        """As the baseline's, nearly."""
        return super().norm(stream, weight_H, 10 * eps)


class DroppedNorm(Ops):
    """No norm before the first layer."""

    def norm(self, stream: Stream, weight_H: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        """The stream itself where nothing is pending."""
        normed, residual = super().norm(stream, weight_H, eps)
        return (residual if stream.residual_TH is None else normed), residual


class DroppedGamma(Ops):
    """Norm weights taken for ones, as by a variant that folds them and forgets to."""

    def norm(self, stream: Stream, weight_H: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        """Without weight."""
        return super().norm(stream, None, eps)


class LeakedNan(Ops):
    """One NaN in one row of one layer's output."""

    def layer(self, *args: Any) -> Stream:
        """As the baseline's, but for one number."""
        stream = super().layer(*args)
        stream.delta_TH[0, 0] = torch.nan
        return stream


class WrongHead(Ops):
    """Right logits, wrong greedy tokens: what a faulty fused LM head would give."""

    def next_token(self, stream: Stream, norm_H: Tensor | None, lm_head: Linear, eps: float) -> Tensor:
        """The token after the right one."""
        return (super().next_token(stream, norm_H, lm_head, eps) + 1) % lm_head.weight_NK.shape[0]


class WrongInBatches(Ops):
    """Right for single rows and prefill, wrong for decode batches of 16 and more: a bad dispatch class."""

    def linear(self, x_TK: Tensor, linear: Linear) -> Tensor:
        """The last row is lost."""
        y = super().linear(x_TK, linear)
        if x_TK.shape[0] in (16, 64):
            y[-1] = 0
        return y


class WrongScale(Ops):
    """Norms two per cent too large."""

    def norm(self, stream: Stream, weight_H: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        """As the baseline's, nearly."""
        normed, residual = super().norm(stream, weight_H, eps)
        return 1.02 * normed, residual


class DroppedBias(Ops):
    """Linear layers without their biases."""

    def linear(self, x_TK: Tensor, linear: Linear) -> Tensor:
        """The product alone."""
        return super().linear(x_TK, replace(linear, bias_N=None))


class Noisy(Ops):
    """Linear layers that are four roundings of bf16 off."""

    def linear(self, x_TK: Tensor, linear: Linear) -> Tensor:
        """The baseline's, and noise that is drawn anew."""
        y = super().linear(x_TK, linear).float()
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(len(x_TK)))
        return (y * (1 + 4 * 2.0**-8 * noise)).to(x_TK.dtype)


class SwappedHeads(Ops):
    """The first two heads' queries in each other's place."""

    def qkv_post(self, *args: Any) -> Tensor:
        """The baseline's, in another order."""
        q_TND = super().qkv_post(*args)
        return q_TND[:, [1, 0, *range(2, q_TND.shape[1])]].contiguous()


WRONG = (
    WrongEps(), DroppedNorm(), DroppedGamma(), LeakedNan(), WrongHead(), WrongInBatches(), WrongScale(), DroppedBias(),
    Noisy(),
)  # fmt: skip


@pytest.mark.parametrize("ops", WRONG, ids=lambda ops: type(ops).__name__)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wrong_variants_are_not(ops: Ops, dtype: str) -> None:
    """Each in a way that a fusion can go wrong."""
    found = verify(session_of("tiny-llama", ops=ops, dtype=dtype), PROTOCOL.verdict_tokens)
    assert not found.ok, found.reason
    assert found.reason.startswith("answers differ from the fp32 reference: mean KL ")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_swapped_heads_are_wrong(dtype: str) -> None:
    """Where heads differ by more than bf16's floor: in the model whose heads are normed."""
    found = verify(session_of("tiny", ops=SwappedHeads(), dtype=dtype), PROTOCOL.verdict_tokens)
    assert not found.ok, found.reason


def test_a_wrong_head_shows_where_and_by_how_much() -> None:
    """At the first token already, by far."""
    found = verify(session_of("tiny-llama", ops=WrongHead()), PROTOCOL.verdict_tokens)
    assert found.first_divergence == 0
    assert found.divergence_margin is not None
    assert found.divergence_margin > 0.01
    assert found.top1_agreement == 1.0


def test_the_reference_s_own_weights_are_kept_from_the_variant() -> None:
    """A variant that folds is compared with what was loaded; afterwards only its own weights are held."""
    session = session_of("tiny", "folded")
    assert session.original.weights is not session.loaded.weights
    verify(session, 16)
    assert session.original is session.loaded


def test_divergence_is_zero_between_equals_and_named_between_others() -> None:
    """KL by hand for two tokens; the worst position is one of its sequence."""
    reference = torch.tensor([[0.0, 0.0], [0.0, torch.log(torch.tensor(3.0))]])
    position = torch.tensor([0, 1])
    same = Divergence.between(reference, reference + 7, position)
    assert same.kl_mean == pytest.approx(0.0, abs=1e-12)
    assert same.top1 == 1.0
    other = Divergence.between(reference, reference.flip(1), position)
    # p = (1/4, 3/4), q = (3/4, 1/4): KL = log(3) / 2.
    assert other.kl_T.tolist() == pytest.approx([0.0, float(torch.log(torch.tensor(3.0))) / 2], abs=1e-6)
    assert same.behind_T.tolist() == [0.0, 0.0]
    assert other.behind_T.tolist() == pytest.approx([0.0, float(torch.log(torch.tensor(3.0)))], abs=1e-6)
    assert (other.beyond(1.0), other.beyond(1.1)) == (0.5, 0.0)
    assert other.error_T.tolist() == pytest.approx([0.0, float(torch.log(torch.tensor(3.0)))], abs=1e-6)
    joined = Divergence.joined([same, other])
    assert joined.position_T.tolist() == [0, 1, 0, 1]
    assert joined.top1 == 0.75


def test_kl_is_the_reference_s_expectation() -> None:
    """p = (1/4, 3/4), q = (1/2, 1/2): the other way around it were log(4 / 3) / 2."""
    reference = torch.tensor([[0.0, math.log(3)]])
    found = Divergence.between(reference, torch.zeros(1, 2), torch.tensor([0]))
    assert found.kl_mean == pytest.approx(math.log(0.5) / 4 + 3 * math.log(1.5) / 4)


def test_a_verdict_names_its_worst_position_beside_the_baseline_s_error() -> None:
    reference, off, position = torch.zeros(3, 4), torch.zeros(3, 4), torch.tensor([5, 6, 7])
    off[1, 0], off[2, 0] = 2.0, 1.0
    variant, unfused = (Divergence.between(reference, reference + by * off, position) for by in (1.0, 0.5))
    tokens = verdict._judge_tokens(torch.zeros(2), unfused, torch.float32)
    found = verdict._judge_logits(tokens, variant, unfused, torch.float32)
    assert (found.kl_max, found.kl_max_position) == (float(variant.kl_T.max()), 6)
    assert (found.kl_mean, found.unfused_kl_mean) == (variant.kl_mean, unfused.kl_mean)
    # Logits twice as far off are more than twice the KL.
    assert not found.ok


def test_the_first_divergence_is_the_earliest_of_all_answers() -> None:
    assert verdict._first_divergence([torch.tensor([0.0, 0.0, 0.5]), torch.tensor([0.0, 0.25, 0.75])]) == (1, 0.25)
    assert verdict._first_divergence([torch.zeros(3), torch.zeros(2)]) == (None, None)


def test_an_answer_s_tokens_are_held_against_the_logits_before_them() -> None:
    """Two tokens of prompt; the first of the answer is the likeliest, the second lies 2 behind."""
    reference = torch.tensor([[9.0, 0.0, 0.0], [0.0, 1.0, 4.0], [3.0, 5.0, 0.0], [7.0, 0.0, 0.0]])
    assert verdict._behind(torch.tensor([0, 1, 2, 0]), 2, reference).tolist() == [0.0, 2.0]


def test_nan_fails_wherever_it_is() -> None:
    """Every comparison with NaN is false, and false is not ok."""
    position = torch.arange(4)
    clean = Divergence.between(torch.randn(4, 9), torch.randn(4, 9), position)
    broken = Divergence.between(torch.randn(4, 9), torch.full((4, 9), torch.nan), position)
    right, unknown = torch.zeros(4), torch.tensor([0.0, torch.nan, 0.0, 0.0])

    def ok(variant: Divergence, unfused: Divergence, behind_T: torch.Tensor) -> bool:
        tokens = verdict._judge_tokens(behind_T, unfused, torch.float32)
        return verdict._judge_logits(tokens, variant, unfused, torch.float32).ok

    assert not ok(broken, clean, right)
    assert not ok(clean, broken, right)
    assert not ok(clean, clean, unknown)
    assert ok(clean, clean, right)


@pytest.mark.parametrize("count", [5, 92])
def test_decode_logits_equal_prefill_logits(count: int) -> None:
    """The two ways through the engine; decode batches of all sizes, however short the sequence."""
    engine = session_of("tiny-llama").engine(1, count, count)
    tokens = torch.randint(259, (count,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        prefill = verdict.prefill_logits(engine, tokens)
        position, decoded = verdict.decode_logits(engine, tokens)
    assert set(position.tolist()) == set(range(count))
    assert len(position) >= sum(verdict.DECODE_SIZES)
    torch.testing.assert_close(decoded, prefill[position], rtol=1e-4, atol=1e-5)
