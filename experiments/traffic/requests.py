"""The traffics, each a function of nothing but its seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from experiments.traffic.records import Limits, Request

VOCABULARY = 32_000


@dataclass(frozen=True)
class Traffic:
    """Requests in the order of their arrival, and the room they are served in."""

    name: str
    description: str
    requests: tuple[Request, ...]
    limits: Limits


TRAFFICS: dict[str, Callable[[], Traffic]] = {}


def traffic(make: Callable[[], Traffic]) -> Callable[[], Traffic]:
    """Register the decorated function under its name."""
    TRAFFICS[make.__name__] = make
    return make


@traffic
def bench() -> Traffic:
    """nano-vLLM's benchmark: 256 requests at once, prompts and answers of 100 to 1024 tokens, and room for all."""
    return Traffic("bench", _text(bench), _uniform(), Limits(256 * 2048))


@traffic
def tight() -> Traffic:
    """The same 256 requests in a pool of 65,536 tokens, a quarter of what they hold in the end."""
    return Traffic("tight", _text(tight), _uniform(), Limits(65_536))


@traffic
def chat() -> Traffic:
    """48 conversations of 4 turns under one system prompt of 600 tokens; a turn's prompt holds all that was said."""
    draw = random.Random(1)
    system = _tokens(draw, 600)
    requests = []
    for _ in range(48):
        said, arrival = system, draw.randint(0, 800)
        for _ in range(4):
            said += _tokens(draw, draw.randint(20, 200))
            answer = _tokens(draw, draw.randint(50, 300))
            requests.append(Request(arrival, said, answer))
            said, arrival = said + answer, arrival + len(answer) + draw.randint(50, 250)
    return Traffic("chat", _text(chat), _sorted(requests), Limits(131_072))


@traffic
def arrivals() -> Traffic:
    """300 requests, one every 4 steps on average, prompts of 200 to 4000 tokens, 2048 tokens a step."""
    draw = random.Random(2)
    arrival, requests = 0.0, []
    for _ in range(300):
        arrival += draw.expovariate(1 / 4)
        prompt, answer = draw.randint(200, 4000), draw.randint(50, 400)
        requests.append(Request(int(arrival), _tokens(draw, prompt), _tokens(draw, answer)))
    return Traffic("arrivals", _text(arrivals), _sorted(requests), Limits(524_288, 256, 2048))


def _uniform() -> tuple[Request, ...]:
    draw = random.Random(0)
    lengths = [(draw.randint(100, 1024), draw.randint(100, 1024)) for _ in range(256)]
    return tuple(Request(0, _tokens(draw, prompt), _tokens(draw, answer)) for prompt, answer in lengths)


def _tokens(draw: random.Random, count: int) -> tuple[int, ...]:
    return tuple(draw.randrange(VOCABULARY) for _ in range(count))


def _sorted(requests: list[Request]) -> tuple[Request, ...]:
    return tuple(sorted(requests, key=lambda request: request.arrival))


def _text(make: Callable[[], Traffic]) -> str:
    return " ".join((make.__doc__ or "").split())
