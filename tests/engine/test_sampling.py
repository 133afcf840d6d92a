"""Sampling against direct references, against the distribution it claims, and against its batch.

Shape suffixes: B rows, V vocabulary.
"""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from engine.request import SamplingParams
from engine.sampling import SamplingBatch, keep_mask, on_device, penalise, sample, token_logprobs, uniform
from experiments.measuring.reference import reference_logits
from tests.engine.tiny import alone, prompt_of, serve, tiny_engine, tiny_model

CPU = torch.device("cpu")
# A right sampler fails a test at this level once in ten thousand seeds; the seeds are fixed.
SIGNIFICANCE = 1e-4


def batch_of(params: list[SamplingParams], seeds: list[int] | None = None, position: int = 5) -> SamplingBatch:
    """Rows at one position."""
    return SamplingBatch.of(params, seeds or list(range(len(params))), [position] * len(params), CPU)


def kept_by_definition(logits: list[float], params: SamplingParams) -> set[int]:
    """Top-k, then top-p of what is left, then min-p, one row at a time in Python's doubles."""
    scaled = [value / params.temperature for value in logits]
    order = sorted(range(len(scaled)), key=lambda token: (-scaled[token], token))
    if params.top_k:
        kth = scaled[order[min(params.top_k, len(order)) - 1]]
        order = [token for token in order if scaled[token] >= kth]
    weights = {token: math.exp(scaled[token] - scaled[order[0]]) for token in order}
    total = sum(weights.values())
    kept, before = set(), 0.0
    for token in order:
        probability = weights[token] / total
        inside = params.top_p >= 1 or before < params.top_p
        if token == order[0] or (inside and probability >= params.min_p * weights[order[0]] / total):
            kept.add(token)
        before += probability
    return kept


@pytest.mark.parametrize(
    "given",
    [
        {"top_k": 1}, {"top_k": 5}, {"top_k": 500}, {"top_p": 0.05}, {"top_p": 0.6}, {"top_p": 0.999}, {"min_p": 0.3},
        {"min_p": 1.0}, {"top_k": 9, "top_p": 0.7}, {"top_k": 30, "top_p": 0.9, "min_p": 0.1}, {},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_kept_tokens_match_the_definition(given: dict[str, Any], temperature: float) -> None:
    """Seven rows of random logits over an odd vocabulary."""
    params = SamplingParams(temperature=temperature, **given)
    logits_BV = torch.randn(7, 131, generator=torch.Generator().manual_seed(1)) * 3
    mask_BV = keep_mask(logits_BV / temperature, [params] * 7, batch_of([params] * 7))
    for row, mask in zip(logits_BV.tolist(), mask_BV, strict=True):
        assert set(mask.nonzero().squeeze(1).tolist()) == kept_by_definition(row, params)


def test_rows_keep_what_their_own_parameters_say() -> None:
    """Different parameters in one batch do not mix."""
    params = [
        SamplingParams(temperature=1, top_k=3),
        SamplingParams(temperature=1),
        SamplingParams(temperature=1, top_p=0.3),
        SamplingParams(temperature=1, min_p=0.9),
    ]
    row_V = torch.randn(50, generator=torch.Generator().manual_seed(2))
    together = keep_mask(row_V.expand(4, -1), params, batch_of(params))
    apart = [keep_mask(row_V[None], [each], batch_of([each]))[0] for each in params]
    assert torch.equal(together, torch.stack(apart))
    assert together.sum(-1).tolist()[:2] == [3, 50]


def test_min_p_alone_sorts_nothing_and_keeps_what_it_keeps_beside_a_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """In rows of many widths, so that many tokens lie near the border."""
    params = [SamplingParams(temperature=1, min_p=(i + 1) / 64) for i in range(64)]
    logits_BV = torch.randn(64, 2000, generator=torch.Generator().manual_seed(3)) * torch.linspace(0.1, 5, 64)[:, None]
    others = [*params, SamplingParams(temperature=1, top_k=3)]
    beside = keep_mask(torch.cat([logits_BV, logits_BV[:1]]), others, batch_of(others))
    monkeypatch.setattr(torch, "sort", None)
    assert torch.equal(keep_mask(logits_BV, params, batch_of(params)), beside[:-1])


def test_ties_at_the_border_stay() -> None:
    """Which of two equally likely tokens goes would be an accident of the sort."""
    logits_BV = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    params = [SamplingParams(temperature=1, top_k=2)]
    mask = keep_mask(logits_BV, params, batch_of(params))
    assert mask.tolist() == [[False, True, True, True, False]]


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    """Whatever the other rows ask for."""
    logits_BV = torch.tensor([[0.0, 5.0, 5.0], [2.0, 1.0, 0.0]])
    params = [SamplingParams(), SamplingParams(temperature=1.0)]
    assert int(sample(logits_BV, params, batch_of(params))[0]) == 1
    assert sample(logits_BV, [SamplingParams()] * 2, batch_of([SamplingParams()] * 2)).tolist() == [1, 0]


def test_however_small_a_temperature_the_likeliest_is_taken() -> None:
    """Scores divided by it would be infinite."""
    logits_BV = torch.tensor([[5.0, 9.0, 1.0, 7.0]])
    for temperature in (1e-30, 1e-38, 1e-44):
        params = [SamplingParams(temperature=temperature)]
        assert sample(logits_BV, params, batch_of(params)).tolist() == [1]


@pytest.mark.parametrize(
    "given",
    [{}, {"temperature": 0.6}, {"temperature": 1.7}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.2}],
    ids=str,
)
def test_draws_follow_the_distribution(given: dict[str, Any]) -> None:
    """Chi-square of 20,000 draws, one per position of one request, against the truncated softmax."""
    params = SamplingParams(**{"temperature": 1.0, **given})
    logits_V = torch.tensor([2.0, 1.5, 1.0, 0.9, 0.0, -0.5, -1.0, -2.0, 0.3, 0.3, 1.1])
    count = 20_000
    counts = draw_counts(logits_V, params, seeds=[3] * count, positions=list(range(count)))
    check_chi_square(counts, logits_V, params)


def test_draws_of_many_requests_follow_the_distribution() -> None:
    """The same, with one position and 20,000 neighbouring seeds: requests numbered 0, 1, 2 are independent."""
    params = SamplingParams(temperature=1.0)
    logits_V = torch.linspace(-2, 2, 13)
    counts = draw_counts(logits_V, params, seeds=list(range(20_000)), positions=[17] * 20_000)
    check_chi_square(counts, logits_V, params)


def draw_counts(logits_V: Tensor, params: SamplingParams, seeds: list[int], positions: list[int]) -> Tensor:
    """How often each token was drawn."""
    batch = SamplingBatch.of([params] * len(seeds), seeds, positions, CPU)
    tokens = sample(logits_V.expand(len(seeds), -1), [params], batch)
    return tokens.bincount(minlength=len(logits_V))


def check_chi_square(counts_V: Tensor, logits_V: Tensor, params: SamplingParams) -> None:
    """Counts against expectation over the kept tokens; dropped tokens are never drawn."""
    kept = sorted(kept_by_definition(logits_V.tolist(), params))
    dropped = sorted(set(range(len(logits_V))) - set(kept))
    assert not counts_V[dropped].any()
    expected = torch.softmax(logits_V[kept].double() / params.temperature, dim=-1) * int(counts_V.sum())
    assert stats.chisquare(counts_V[kept].numpy(), expected.numpy()).pvalue > SIGNIFICANCE


def test_noise_is_uniform_and_uncorrelated() -> None:
    """Kolmogorov-Smirnov over one request's noise; neighbours in token, position and seed do not correlate."""
    seeds = torch.tensor([11, 11, 12])
    noise = uniform(seeds, torch.tensor([100, 101, 100]), 50_000)
    assert ((noise > 0) & (noise < 1)).all()
    assert stats.kstest(noise[0].double().numpy(), "uniform").pvalue > SIGNIFICANCE
    pairs = {
        "token": (noise[0, 1:], noise[0, :-1]),
        "position": (noise[0], noise[1]),
        "seed": (noise[0], noise[2]),
    }
    for first, second in pairs.values():
        assert stats.pearsonr(first.numpy(), second.numpy()).pvalue > SIGNIFICANCE


def test_noise_depends_on_all_64_bits_of_the_seed() -> None:
    """Large and negative seeds are as good as small ones."""
    seeds = torch.tensor([1, 1 + 2**32, 1 + 2**40, -1, 2**63 - 1, -(2**63)])
    noise = uniform(seeds, torch.zeros(6, dtype=torch.int64), 64)
    assert len({tuple(row) for row in noise.tolist()}) == 6


def test_a_drawn_token_does_not_depend_on_its_row() -> None:
    """The same request alone, first, last and among others with other parameters."""
    logits_BV = torch.randn(9, 300, generator=torch.Generator().manual_seed(4))
    params = [SamplingParams(temperature=0.5 + i / 4, top_k=i * 7, top_p=1 - i / 20) for i in range(9)]
    seeds = [5 * i for i in range(9)]
    together = sample(logits_BV, params, batch_of(params, seeds)).tolist()
    for order in ([8, 0, 4], [3], list(range(9))[::-1]):
        some = [params[i] for i in order]
        drawn = sample(logits_BV[order], some, batch_of(some, [seeds[i] for i in order])).tolist()
        assert drawn == [together[i] for i in order]


def test_seeds_reproduce_and_differ() -> None:
    """In the engine: the same seed gives the same answer in any company, another seed another one."""
    prompt, other = prompt_of(20), prompt_of(33)
    sampling = [SamplingParams(temperature=1.0, seed=seed, max_tokens=24, ignore_eos=True) for seed in (1, 2, 1)]
    first, second, again = (output.token_ids for output in tiny_engine().generate([prompt] * 3, sampling))
    assert first == again != second
    assert alone(tuple(prompt), sampling[0]).token_ids == first
    mixed = tiny_engine(max_num_batched_tokens=16).generate([other, prompt], [sampling[1], sampling[0]])
    assert mixed[1].token_ids == first


def test_unseeded_requests_differ_and_engines_reproduce() -> None:
    """Requests without a seed draw from the engine's: not alike among themselves, the same in the next engine."""
    sampling = SamplingParams(temperature=1.0, max_tokens=16, ignore_eos=True)
    answers = [serve(tiny_engine(seed=seed), [prompt_of(9)] * 3, sampling) for seed in (0, 0, 1)]
    assert len({tuple(tokens) for tokens in answers[0]}) == 3
    assert answers[0] == answers[1] != answers[2]


def test_logprobs_are_the_model_s_own() -> None:
    """Before temperature and cut-offs; the likeliest first; only for those that ask."""
    logits_BV = torch.randn(3, 40, generator=torch.Generator().manual_seed(5))
    params = [SamplingParams(temperature=2.0, logprobs=3), SamplingParams(), SamplingParams(logprobs=0)]
    tokens = torch.tensor([7, 1, 2])
    first, second, third = token_logprobs(logits_BV, tokens, params)
    expected = torch.log_softmax(logits_BV.double(), dim=-1)
    assert first is not None
    assert first.chosen == pytest.approx(float(expected[0, 7]), abs=1e-6)
    assert [token for token, _ in first.top] == expected[0].topk(3).indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(expected[0].topk(3).values.tolist(), abs=1e-6)
    assert second is None
    assert third is not None
    assert third.top == ()


def test_more_logprobs_than_tokens_are_all_of_them() -> None:
    """The vocabulary bounds the list."""
    (answer,) = token_logprobs(torch.zeros(1, 5), torch.tensor([0]), [SamplingParams(logprobs=99)])
    assert answer is not None
    assert len(answer.top) == 5


def test_penalty_equals_transformers() -> None:
    """RepetitionPenaltyLogitsProcessor on the same logits, tokens repeated in the prompt included."""
    from transformers import RepetitionPenaltyLogitsProcessor

    logits_BV = torch.randn(2, 30, generator=torch.Generator().manual_seed(6)) * 2
    seen = torch.tensor([[1, 2, 2, 9], [0, 29, 5, 5]])
    for penalty in (0.7, 1.0, 1.8):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits_BV.clone())
        assert torch.equal(penalise(logits_BV, seen, torch.full((2,), penalty)), expected)


@pytest.mark.parametrize("overlap", [True, False])
def test_penalty_counts_prompt_and_answer(overlap: bool) -> None:
    """Recomputed token by token; with overlap the newest token is known on the device only."""
    prompt, penalty = prompt_of(12), 1.5
    plain = SamplingParams(max_tokens=20, ignore_eos=True)
    asked = SamplingParams(max_tokens=20, ignore_eos=True, repetition_penalty=penalty)
    engine = tiny_engine(overlap=overlap)
    unpenalised, penalised, _ = engine.generate([prompt] * 3, [plain, asked, plain])
    assert unpenalised.token_ids == alone(tuple(prompt), plain).token_ids
    tokens = list(prompt)
    for token in penalised.token_ids:
        logits_1V = reference_logits(tiny_model(), torch.tensor(tokens))[-1:]
        assert token == int(penalise(logits_1V, torch.tensor([tokens]), torch.tensor([penalty])).argmax())
        tokens.append(token)


def test_a_strong_penalty_never_repeats() -> None:
    """Greedy with a penalty of 1e9: every logit that was positive is next to nothing."""
    sampling = SamplingParams(max_tokens=30, ignore_eos=True, repetition_penalty=1e9)
    prompt = prompt_of(5)
    tokens = alone(tuple(prompt), sampling).token_ids
    assert len(set(tokens)) == len(tokens)
    assert not set(tokens) & set(prompt)


def test_nan_rows_stay_with_themselves() -> None:
    """A row of NaN gives some token of the vocabulary; its neighbours draw what they draw without it."""
    logits_BV = torch.randn(3, 50, generator=torch.Generator().manual_seed(8))
    params = [SamplingParams(temperature=1.0, top_k=5, top_p=0.9, min_p=0.01)] * 3
    clean = sample(logits_BV, params, batch_of(params)).tolist()
    broken = logits_BV.clone()
    broken[1] = torch.nan
    drawn = sample(broken, params, batch_of(params)).tolist()
    assert [drawn[0], drawn[2]] == [clean[0], clean[2]]
    assert 0 <= drawn[1] < 50


def test_infinite_logits_are_never_drawn_or_always() -> None:
    """-inf bans a token, whatever the noise."""
    logits_V = torch.full((20,), -torch.inf)
    logits_V[[3, 8]] = 0.0
    for params in (SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, min_p=0.1)):
        counts = draw_counts(logits_V, params, seeds=[1] * 2000, positions=list(range(2000)))
        assert counts.nonzero().squeeze(1).tolist() == [3, 8]
    logits_V[5] = torch.inf
    for top_k, min_p in ((0, 0.0), (0, 0.1), (4, 0.1)):
        params = SamplingParams(temperature=1.0, top_k=top_k, min_p=min_p)
        counts = draw_counts(logits_V, params, seeds=[1] * 9, positions=list(range(9)))
        assert counts.nonzero().squeeze(1).tolist() == [5]


def test_host_values_arrive_whole_and_typed() -> None:
    """On a CPU there is nothing to wait for; on a GPU the copy comes from pinned memory."""
    rows = on_device([3, 1], torch.device("cpu"), torch.int32)
    assert rows.dtype == torch.int32
    assert rows.tolist() == [3, 1]
    assert on_device([True, False], torch.device("cpu")).dtype == torch.bool
