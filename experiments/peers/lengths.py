"""Which prompt and which two answers make a decode cell of a peer.

The long call has `steps` more tokens than the short one. The tokens in the cache before each of these further steps are
prompt + short - 1, ..., prompt + long - 2; their mean is to be the cell's length, as in our own decode cells.

An engine that decodes some prompts of a batch while it prefills others ends as unevenly as it began. The short call is
long enough that none has ended before the last one is prefilled: then both calls begin alike and end alike, and what
the long one has more is steps of the whole batch.
"""

from dataclasses import dataclass

from experiments.config import ProtocolConfig
from experiments.measuring.decode import SETTLE_STEPS
from experiments.measuring.session import MAX_BATCHED_TOKENS
from experiments.records import Point


@dataclass(frozen=True)
class DecodeLengths:
    """Tokens of each prompt, and of its answer in the short and in the long call."""

    prompt: int
    short: int
    long: int

    @property
    def steps(self) -> int:
        """Decode steps that the long call has more."""
        return self.long - self.short

    @property
    def most(self) -> int:
        """Tokens of a sequence at the end of the long call."""
        return self.prompt + self.long


def decode_lengths(point: Point, protocol: ProtocolConfig, positions: int) -> DecodeLengths:
    """The lengths for a cell; moved to earlier contexts where the last step would lie past the model's positions."""
    short = SETTLE_STEPS + -(-point.batch * point.length // MAX_BATCHED_TOKENS)
    long = short + protocol.windows * protocol.steps_per_window
    prompt = point.length - (short + long - 3) // 2
    return DecodeLengths(max(1, min(prompt, positions - long)), short, long)
