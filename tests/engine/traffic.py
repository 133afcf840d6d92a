"""Random traffic against a tiny engine, its books checked at every step and every answer against the request alone.

Driven by hypothesis (test_traffic.py) and by a clock (soak.py); `random.Random` or hypothesis make the choices.
"""

from dataclasses import dataclass, field
from typing import Protocol

from engine import Engine, RequestOutput, SamplingParams
from tests.engine.replay import graph_engine
from tests.engine.tiny import CONFIG, alone, prompt_of, tiny_engine
from tests.shipped import VARIANTS

MAX_STEPS_AFTER = 3000


class Draw(Protocol):
    """Where choices come from."""

    def integer(self, least: int, most: int) -> int:
        """A whole number, both ends included."""


@dataclass
class Asked:
    """A request as made, and whether it has been aborted."""

    prompt: list[int]
    sampling: SamplingParams
    aborted: bool = False


def draw_engine(draw: Draw) -> Engine:
    """An engine of any variant, with a pool, a batch and a token budget so small that they run out all the time."""
    max_num_seqs = draw.integer(1, 5)
    build = graph_engine if draw.integer(0, 1) else tiny_engine
    return build(
        variant=list(VARIANTS.values())[draw.integer(0, len(VARIANTS) - 1)],
        num_kv_blocks=draw.integer(4, 12),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw.integer(max_num_seqs, 60),
        max_model_len=128,
        overlap=bool(draw.integer(0, 3)),
        enable_prefix_caching=bool(draw.integer(0, 3)),
    )


def draw_prompt(draw: Draw) -> list[int]:
    """A prompt that may begin like others, be equal to others, or be too long for the pool or the model."""
    stem = prompt_of(64, seed=draw.integer(0, 1))[: draw.integer(0, 4) * 16]
    # Whole blocks as often as not: a prompt that is cached to its last token is a case of its own.
    length = 16 * draw.integer(1, 2) if draw.integer(0, 1) else draw.integer(1, 36)
    return stem + prompt_of(length, seed=draw.integer(2, 3))


def draw_sampling(draw: Draw) -> SamplingParams:
    """Greedy more often than not; short, sometimes stopped early."""
    stop = tuple(range(3, 3 + 8 * draw.integer(0, 1)))
    common = {"max_tokens": draw.integer(1, 40), "ignore_eos": bool(draw.integer(0, 1)), "stop": stop}
    match draw.integer(0, 5):
        case 0:
            return SamplingParams(temperature=1.0, seed=draw.integer(0, 2), **common)
        case 1:
            return SamplingParams(temperature=0.7, top_k=9, top_p=0.9, min_p=0.01, seed=draw.integer(0, 2), **common)
        case 2:
            return SamplingParams(repetition_penalty=1.3, logprobs=draw.integer(0, 2), **common)
        case _:
            return SamplingParams(**common)


@dataclass
class Traffic:
    """An engine under traffic. Every method raises AssertionError on the first thing that is not right."""

    engine: Engine
    asked: dict[int, Asked] = field(default_factory=dict)
    finished: dict[int, RequestOutput] = field(default_factory=dict)

    def add(self, draw: Draw) -> None:
        """One more request."""
        asked = Asked(draw_prompt(draw), draw_sampling(draw))
        self.asked[self.engine.add_request(asked.prompt, asked.sampling)] = asked
        self.engine.check_integrity()

    def abort(self, draw: Draw) -> None:
        """Give up on some request, whether it is waiting, running or done."""
        if self.asked:
            request_id = draw.integer(0, max(self.asked))
            self.engine.abort(request_id)
            self.asked[request_id].aborted = True
            self.engine.check_integrity()

    def step(self) -> None:
        """One step of the engine."""
        for output in self.engine.step():
            assert output.request_id not in self.finished, "a finished request moved on"
            if output.finished:
                self.finished[output.request_id] = output
                self.check(output)
        self.engine.check_integrity()

    def drain(self) -> None:
        """Step until nothing is left; everything that was taken must have been given back."""
        for _ in range(MAX_STEPS_AFTER):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, f"requests are left after {MAX_STEPS_AFTER} steps"
        assert set(self.finished) == set(self.asked), "a request got no final output"
        assert self.engine.blocks.num_used == 0, "an idle engine holds blocks"
        assert self.engine.scheduler.idle

    def check(self, output: RequestOutput) -> None:
        """The answer is that of the request alone; an aborted one may end anywhere in it."""
        asked = self.asked[output.request_id]
        total = len(asked.prompt) + asked.sampling.max_tokens
        room = len(self.engine.blocks.blocks) * self.engine.config.block_size
        if total > self.engine.config.max_model_len or total - 1 > room:
            assert (output.finish_reason, output.token_ids) == ("error", [])
            return
        expected = alone(tuple(asked.prompt), asked.sampling)
        if asked.aborted and output.finish_reason == "abort":
            assert output.token_ids == expected.token_ids[: len(output.token_ids)]
            return
        assert output.token_ids == expected.token_ids
        assert output.finish_reason == expected.finish_reason
        if asked.sampling.logprobs is not None:
            assert output.logprobs is not None
            assert len(output.logprobs) == len(output.token_ids)
        assert all(0 <= token < CONFIG.vocab_size for token in output.token_ids)
