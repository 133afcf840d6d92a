"""Random traffic against tiny engines until the time is up: `python -m tests.engine.soak --minutes 60`.

Every round has a seed of its own. A failure prints it; `--seed N --minutes 0` runs that round again.
"""

import argparse
import random
import sys
import time
import traceback

import torch

from tests.engine.tiny import alone
from tests.engine.traffic import Traffic, draw_engine

ACTIONS = 150


class Seeded:
    """Choices from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integer(self, least: int, most: int) -> int:
        """A whole number, both ends included."""
        return self.random.randint(least, most)


def run_round(seed: int) -> dict[str, float]:
    """One engine's life; its metrics at the end."""
    draw = Seeded(seed)
    traffic = Traffic(draw_engine(draw))
    arrivals = draw.integer(1, 8)  # In ten actions; the others are steps, and an abort now and then.
    for _ in range(ACTIONS):
        action = draw.integer(0, 19)
        if action < arrivals:
            traffic.add(draw)
        elif action == 19:
            traffic.abort(draw)
        else:
            traffic.step()
    traffic.drain()
    return traffic.engine.snapshot()


def main(argv: list[str] | None = None) -> int:
    """Rounds until the time is up; exit code 1 and the seed at the first failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="the first round's seed; each round adds one")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    end, seed, totals = time.monotonic() + 60 * options.minutes, options.seed, dict.fromkeys(SHOWN, 0.0)
    while True:
        try:
            snapshot = run_round(seed)
        except Exception:
            traceback.print_exc()
            print(f"soak: round with --seed {seed} failed")
            return 1
        totals = {name: totals[name] + snapshot[name] for name in SHOWN}
        seed += 1
        if seed % 500 == 0:
            alone.cache_clear()  # An hour's answers are too many to keep.
        if time.monotonic() >= end:
            counts = ", ".join(f"{total:,.0f} {name.replace('_', ' ')}" for name, total in totals.items())
            print(f"soak: {seed - options.seed} rounds without a violation: {counts}")
            return 0


SHOWN = ("requests", "failed_requests", "generated_tokens", "steps", "preemptions")

if __name__ == "__main__":
    sys.exit(main())
