"""A step on its way: as every rank runs it, and as it is waited for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from engine.inputs import Layout
from engine.request import TokenLogprobs
from engine.scheduler import Scheduled


class Launch(NamedTuple):
    """A step as every rank runs it: its shape, whether a graph serves it, and the packed inputs to upload.

    With `tokens_only` it ends in token ids, since nobody needs its logits. `packed` is None where the device has the
    inputs already. The last two, tokens whose logits are wanted and the longest prefill chunk, count for steps with
    prompts that have no graph.
    """

    layout: Layout
    tokens_only: bool
    graphed: bool
    packed: np.ndarray | None
    num_logit_rows: int = 0
    max_query_len: int = 1


@dataclass
class Pending:
    """A launched step: who gets a token from it, where the tokens will be, and how to wait for them."""

    sampling: list[Scheduled]
    tokens: Tensor
    wait: Callable[[], None] | None
    logprobs: list[TokenLogprobs | None] | None = None

    def token_ids(self) -> list[int]:
        """The sampled tokens, in the order of `sampling`; waits for the step."""
        if self.wait is not None:
            self.wait()
        token_ids: list[int] = self.tokens[: len(self.sampling)].tolist()
        return token_ids
