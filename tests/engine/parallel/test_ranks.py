"""Collectives over real gloo groups, and the choice of a token from parts of a vocabulary."""

import threading

import pytest
import torch
from torch import Tensor

from engine.parallel.ranks import Columns, Ranks
from tests.engine.parallel.threads import on_ranks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sums_gathers_and_the_least(dtype: torch.dtype) -> None:
    """On every rank the same."""

    def task(ranks: Ranks) -> tuple[Tensor, Tensor, int]:
        x = torch.arange(6, dtype=dtype).reshape(2, 3) + 10 * ranks.rank
        return ranks.sum(x.clone()), ranks.gather(x), ranks.least(7 - ranks.rank)

    for summed, gathered, least in on_ranks(3, task):
        part = torch.arange(6, dtype=dtype).reshape(2, 3)
        assert torch.equal(summed, 3 * part + 30)
        assert torch.equal(gathered, torch.stack((part, part + 10, part + 20)))
        assert least == 5


def test_rank_0_is_heard() -> None:
    """Whatever the others hold."""
    results = on_ranks(2, lambda ranks: ranks.broadcast(torch.full((3,), ranks.rank + 5)))
    assert all(torch.equal(x, torch.full((3,), 5)) for x in results)


@pytest.mark.parametrize(("size", "total"), [(2, 8), (2, 7), (3, 7), (3, 8)])
def test_outputs_side_by_side_are_the_whole(size: int, total: int) -> None:
    """However they come out, though the last rank may hold fewer."""
    whole = torch.randn(4, total, generator=torch.Generator().manual_seed(total))
    joined = on_ranks(size, lambda ranks: Columns(ranks, total).join(ranks.part(whole, 1)))
    assert all(torch.equal(x, whole) for x in joined)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_best_of_the_parts_is_the_argmax_of_the_whole(dtype: torch.dtype) -> None:
    """Ties within and across ranks go to the lowest index, a NaN wins, as in torch.argmax."""
    whole = torch.randn(7, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole[1, [2, 7]] = 5.0
    whole[2, [6, 8]] = 5.0
    whole[3, 7] = torch.nan
    whole[4] = torch.nan
    whole[5] = -torch.inf

    def task(ranks: Ranks) -> Tensor:
        part = ranks.part(whole, 1)
        token = part.argmax(-1)
        return Columns(ranks, 9).best(token, part.gather(1, token[:, None]).squeeze(1))

    for tokens in on_ranks(2, task):
        assert tokens.dtype == torch.int64
        assert tokens.tolist() == whole.argmax(-1).tolist()


def test_a_rank_that_met_nobody_says_so() -> None:
    """Before it is connected, and after it left."""
    with pytest.raises(RuntimeError, match="rank 1 of 2 is not connected"):
        Ranks(1, 2).sum(torch.ones(1))


class Graphs:
    """Stands in for graphs that hold a communicator's kernels."""

    def __init__(self) -> None:
        self.dropped = threading.Event()

    def clear(self) -> None:
        """Let them go."""
        self.dropped.set()


def test_a_communicator_ends_although_graphs_hold_it() -> None:
    """NCCL's abort ends the kernels, then waits for the graphs: alone it would never return."""
    graphs, gone, ended = Graphs(), Graphs(), list[bool]()

    class Group:
        def abort(self) -> None:
            ended.append(graphs.dropped.wait(20))

    ranks = Ranks(0, 2)
    ranks.device, ranks._group = torch.device("cuda"), Group()
    # A runner may be gone before its ranks leave.
    ranks.before_leaving(gone.clear)
    del gone
    ranks.before_leaving(graphs.clear)
    ranks.disconnect()
    assert ended == [True]
    with pytest.raises(RuntimeError, match="not connected"):
        ranks.sum(torch.ones(1))
