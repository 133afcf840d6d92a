"""Is a variant's answer right? Its logits against the fp32 reference, before anything is timed.

The engine under test first answers a few prompts greedily, as it will be timed: graphs, dispatch and all. The reference
then reads prompt and answer in one pass. Each token of an answer must be its own greedy choice, or so near that
rounding decides; where the two first differ is the first divergence. And over all positions the variant's
teacher-forced logits, through prefill and through decode batches of several sizes, are compared with the reference's.
All bounds are multiples of the baseline's own error on the same weights.

Where the reference's likeliest tokens are near ties, rounding chooses among them, and how often it chooses as the
reference does is chance: a choice counts as wrong only where it lies further behind than rounding explains.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from engine import BASELINE, Engine, SamplingParams, Variant
from engine.batch import Batch
from experiments.measuring.reference import reference_logits
from experiments.measuring.session import Session, free_memory
from experiments.records import Verdict

NUM_PROMPTS = 4
DECODE_SIZES = (1, 2, 8, 16, 64)  # One per dispatch class of the skinny kernels.
TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea, there lived",
    "Water boils at 100 degrees Celsius because",
)

# Mean KL in nats that a variant may have, as a multiple of the baseline's own: fused kernels round at other places, not
# more often, so their errors are of one size (0.8 to 1.6 times in half precision); twice leaves room for chance over
# few positions. In fp32, where folding rounds once more (3 times), the floor decides: logits off by 4e-5.
KL_FACTOR = 2.0
KL_FLOOR = {torch.float32: 1e-9, torch.float16: 1e-7, torch.bfloat16: 5e-6}
# Two log-probabilities that are each off by e change places up to a margin of 2 e. The error is the baseline's largest,
# and that of the likeliest tokens, since no others are near.
SWAP_FACTOR = 2.0
# No choice may lie further behind than twice that, greedy or teacher-forced: room for chance, as above.
MARGIN_FACTOR = 2 * SWAP_FACTOR
CONTENDERS = 8
# Choices further behind than SWAP_FACTOR says, beyond the baseline's own, as a share of positions. Of 1,000 simulated
# variants with errors of the baseline's size, or a quarter larger, none has so many.
WRONG_SLACK = {torch.float32: 0.0, torch.float16: 0.01, torch.bfloat16: 0.01}


@dataclass(frozen=True)
class Divergence:
    """Over all checked positions: KL(reference || variant) in nats, whether the likeliest token agrees, how far it lies
    behind the reference's in nats, the largest error among the contenders' log-probabilities, and the position in its
    sequence.
    """

    kl_T: Tensor
    agree_T: Tensor
    behind_T: Tensor
    error_T: Tensor
    position_T: Tensor

    @classmethod
    def between(cls, reference_TV: Tensor, logits_TV: Tensor, position_T: Tensor) -> "Divergence":
        """Compare logits of the same positions, in fp64: a KL of 1e-8 is a difference of logarithms near it."""
        p, q = (F.log_softmax(x.double(), dim=-1) for x in (reference_TV, logits_TV))
        choice = logits_TV.argmax(-1, keepdim=True)
        agree = reference_TV.argmax(-1) == choice.squeeze(1)
        best, tokens = p.topk(min(CONTENDERS, p.shape[-1]), dim=-1)
        behind = best[:, 0] - p.gather(1, choice).squeeze(1)
        error = (best - q.gather(1, tokens)).abs().amax(-1)
        return cls((p.exp() * (p - q)).sum(-1), agree, behind, error, position_T)

    @classmethod
    def joined(cls, parts: list["Divergence"]) -> "Divergence":
        """All parts in order."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @property
    def kl_mean(self) -> float:
        """NaN if any logit was."""
        return float(self.kl_T.mean())

    @property
    def top1(self) -> float:
        """Share of positions at which the likeliest token agrees."""
        return float(self.agree_T.double().mean())

    def beyond(self, margin: float) -> float:
        """Share of positions whose likeliest token lies further than that behind the reference's."""
        return float((self.behind_T > margin).double().mean())

    def largest_error(self, dtype: torch.dtype) -> float:
        """Of a contender's log-probability, in nats; at least what gives a KL of the floor, about e^2 / 2."""
        return max(math.sqrt(2 * KL_FLOOR[dtype]), float(self.error_T.max()))


Answers = list[tuple[Tensor, int]]
"""(tokens of prompt and answer, length of the prompt) of each sequence."""


def verify(session: Session, num_positions: int) -> Verdict:
    """The verdict on the session's variant over about `num_positions` positions. Drops the original weights."""
    with torch.inference_mode():
        answers = _greedy_answers(session, num_positions)
    return judge(session, answers, lambda references: _teacher_forced(session, None, answers, references))


def judge(session: Session, answers: Answers, own: Callable[[list[Tensor]], Divergence | None]) -> Verdict:
    """The verdict on greedy answers, and on the divergence that `own` finds from the reference's logits.

    An engine that gives no logits (None) is judged by its tokens alone. Drops the session's original weights.
    """
    with torch.inference_mode():
        references = [reference_logits(session.original, tokens) for tokens, _ in answers]
        divergence = own(references)
        unfused = _teacher_forced(session, BASELINE, answers, references)
        behind = [
            _behind(tokens, num_prompt, reference)
            for (tokens, num_prompt), reference in zip(answers, references, strict=True)
        ]
    session.drop_original()
    judged = _judge_tokens(torch.cat(behind), unfused, session.dtype)
    if divergence is not None:
        judged = _judge_logits(judged, divergence, unfused, session.dtype)
    reason = judged.reason if judged.ok else f"answers differ from the fp32 reference: {judged.reason}"
    at, margin = _first_divergence(behind)
    return replace(judged, reason=reason, first_divergence=at, divergence_margin=margin)


def _judge_tokens(behind_T: Tensor, unfused: Divergence, dtype: torch.dtype) -> Verdict:
    """Over the tokens of all answers: how far the worst lies behind the reference's best; is that rounding?"""
    most = MARGIN_FACTOR * unfused.largest_error(dtype)
    behind = float(behind_T.max())
    return Verdict(
        # Written so that a NaN fails, here and below.
        ok=behind <= most,
        reason=f"greedy tokens at most {behind:.3g} behind the best (bound {most:.3g})",
        positions=len(behind_T),
        top1_agreement=float((behind_T == 0).double().mean()),
        kl_mean=None,
        kl_max=None,
        kl_max_position=None,
        unfused_kl_mean=unfused.kl_mean,
    )


def _judge_logits(tokens: Verdict, variant: Divergence, unfused: Divergence, dtype: torch.dtype) -> Verdict:
    """The verdict on the tokens, and the logits held against the baseline's own error."""
    most_kl = max(KL_FLOOR[dtype], KL_FACTOR * unfused.kl_mean)
    count, error = len(variant.agree_T), unfused.largest_error(dtype)
    swap, most_behind, behind = SWAP_FACTOR * error, MARGIN_FACTOR * error, float(variant.behind_T.max())
    wrong, most_wrong = variant.beyond(swap), unfused.beyond(swap) + WRONG_SLACK[dtype] + 1 / count
    figures = (
        f"mean KL {variant.kl_mean:.3g} (bound {most_kl:.3g}, unfused {unfused.kl_mean:.3g}), "
        f"top-1 {variant.top1:.4f} (unfused {unfused.top1:.4f}) over {count} positions, "
        f"a share of {wrong:.4f} more than {swap:.3g} behind the best (bound {most_wrong:.4f}), the furthest "
        f"{behind:.3g} (bound {most_behind:.3g}), "
    )
    worst = int(variant.kl_T.nan_to_num(torch.inf).argmax())
    return replace(
        tokens,
        ok=tokens.ok and variant.kl_mean <= most_kl and wrong <= most_wrong and behind <= most_behind,
        reason=figures + tokens.reason,
        positions=len(variant.kl_T),
        top1_agreement=variant.top1,
        kl_mean=variant.kl_mean,
        kl_max=float(variant.kl_T[worst]),
        kl_max_position=int(variant.position_T[worst]),
    )


def _greedy_answers(session: Session, num_positions: int) -> Answers:
    """(prompt and answer tokens, length of the prompt) of each prompt, answered in one batch."""
    half = max(2, num_positions // (2 * NUM_PROMPTS))
    prompts = verdict_prompts(session, half)
    longest = max(map(len, prompts)) + half
    engine = session.engine(NUM_PROMPTS, longest, NUM_PROMPTS * longest)
    outputs = engine.generate(prompts, SamplingParams(max_tokens=half, ignore_eos=True))
    failed = next((output.error for output in outputs if output.error), None)
    if failed:
        raise RuntimeError(failed)
    return [
        (torch.tensor(o.prompt_token_ids + o.token_ids, device=session.device), len(o.prompt_token_ids))
        for o in outputs
    ]


def verdict_prompts(session: Session, length: int) -> list[list[int]]:
    """Texts for a model that reads, random tokens for one that does not."""
    tokenizer = session.loaded.tokenizer
    if tokenizer is not None:
        return [tokenizer.encode(text) for text in TEXTS]
    generator = torch.Generator().manual_seed(session.request.seed)
    vocab_size = session.loaded.config.vocab_size
    rows: list[list[int]] = torch.randint(vocab_size, (NUM_PROMPTS, length), generator=generator).tolist()
    return rows


def _teacher_forced(
    session: Session, variant: Variant | None, answers: Answers, references: list[Tensor]
) -> Divergence:
    parts = []
    longest = max(len(tokens) for tokens, _ in answers)
    engine = session.engine(1, longest, longest, variant)
    for (tokens, _), reference in zip(answers, references, strict=True):
        position = torch.arange(len(tokens), device=tokens.device)
        parts.append(Divergence.between(reference, prefill_logits(engine, tokens), position))
        position, decoded = decode_logits(engine, tokens)
        parts.append(Divergence.between(reference[position], decoded, position))
    del engine
    free_memory(session.device)
    return Divergence.joined(parts)


def prefill_logits(engine: Engine, tokens_T: Tensor) -> Tensor:
    """Logits [T, V] of one sequence in one prefill step; its keys and values are left in the first pages."""
    count = len(tokens_T)
    position = torch.arange(count, device=engine.device, dtype=torch.int32)
    lengths = torch.tensor([0, count], device=engine.device, dtype=torch.int32)
    batch = Batch(tokens_T, position, position, _table(engine, 1), lengths[1:], 0, lengths, count)
    return _logits(engine, batch)


def decode_logits(engine: Engine, tokens_T: Tensor) -> tuple[Tensor, Tensor]:
    """(positions, their logits) through decode steps of DECODE_SIZES rows in turn; every size and position is met.

    Each row of a step is the sequence cut off at another position, starting over at its end; a prefill must have filled
    the pages before.
    """
    positions, parts, start, turn = [], [], 0, 0
    while start < len(tokens_T) or turn < len(DECODE_SIZES):
        size = DECODE_SIZES[turn % len(DECODE_SIZES)]
        position = torch.arange(start, start + size, device=engine.device, dtype=torch.int32) % len(tokens_T)
        batch = Batch(tokens_T[position], position, position, _table(engine, size), position + 1, size)
        positions.append(position)
        parts.append(_logits(engine, batch))
        start, turn = start + size, turn + 1
    return torch.cat(positions), torch.cat(parts)


def _logits(engine: Engine, batch: Batch) -> Tensor:
    # On every rank, and a batch that is sent to others must not lie on this one's GPU.
    return engine.runner.logits(batch.to(torch.device("cpu")))


def _table(engine: Engine, num_rows: int) -> Tensor:
    """Every row holds the pages 0, 1, 2 ..., so that a token's slot is its position."""
    pages = torch.arange(len(engine.blocks.blocks), device=engine.device, dtype=torch.int32)
    return pages.expand(num_rows, -1).contiguous()


def _behind(tokens_T: Tensor, num_prompt: int, reference_TV: Tensor) -> Tensor:
    """How far each token of the answer lies behind the reference's greedy choice, in logits: 0 where it is that."""
    choices = reference_TV[num_prompt - 1 : -1]
    return choices.amax(-1) - choices.gather(1, tokens_T[num_prompt:, None].long()).squeeze(1)


def _first_divergence(behind: list[Tensor]) -> tuple[int | None, float | None]:
    """The earliest place in any answer that is not the reference's greedy choice, and the reference's margin there."""
    found = [(int(at), float(margins[at])) for margins in behind for at in (margins > 0).nonzero()[:1]]
    return min(found) if found else (None, None)
