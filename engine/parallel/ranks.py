"""The processes that share a model, and the collectives between them.

Each engine has a process group of its own, built on a store of its own, and touches nothing global: engines do not
meet, and the caller's torch.distributed stays as it is. On CUDA the collectives are NCCL's, run on the current stream
and can be captured in a graph; on a CPU they are gloo's. Shape suffixes: R ranks, B rows, N a rank's part of V outputs.
"""

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import TCPStore, distributed_c10d  # type: ignore[attr-defined]

# Its backends and their options are bound from C++ and have no types.
c10d: Any = distributed_c10d

# A rank that lives and gives no answer for so long counts as lost. Kernels are compiled in this time.
TIMEOUT_S = 120.0
# How long the end of a communicator is waited for.
ABORT_S = 5.0
HOST = "127.0.0.1"


class Ranks:
    """This process's place among the `size` that share a model; collectives work once it is connected."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.device = torch.device("cpu")
        self._group: Any = None
        self._drops: list[weakref.WeakMethod[Callable[[], None]]] = []

    def connect(self, store: Any, device: torch.device) -> None:
        """Meet the other ranks; returns when all are there."""
        self.device = device
        make = _nccl if device.type == "cuda" else _gloo
        self._group = make(store, self.rank, self.size, timedelta(seconds=TIMEOUT_S))
        # NCCL makes its communicator at the first collective, which must not lie inside a graph's capture.
        self.least(0)

    def before_leaving(self, drop: Callable[[], None]) -> None:
        """Have a method that drops captured collectives called when this rank leaves, if its object still lives."""
        if self.size > 1:
            self._drops.append(weakref.WeakMethod(drop))

    def disconnect(self) -> None:
        """Leave without asking the others: kernels that wait for them end, graphs of collectives too."""
        group, self._group = self._group, None
        if group is None or self.device.type != "cuda":
            return
        # NCCL ends running kernels first, then waits until no graph holds a kernel of its own: for ever, on one thread.
        aborting = threading.Thread(target=group.abort, daemon=True)
        aborting.start()
        for reference in self._drops:
            if drop := reference():
                drop()
        aborting.join(ABORT_S)

    def part(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's view of a tensor cut along `dim`; where it does not come out even, the last part is smaller."""
        if self.size == 1:
            return whole
        count = whole.shape[dim]
        most = -(-count // self.size)
        start = min(self.rank * most, count)
        return whole.narrow(dim, start, min(most, count - start))

    def sum(self, x: Tensor) -> Tensor:
        """`x` added up over the ranks, in place."""
        self._reduce(x, c10d.ReduceOp.SUM)
        return x

    def least(self, value: int) -> int:
        """The smallest of the ranks' values."""
        if self.size == 1:
            return value
        x = torch.tensor([value], device=self.device)
        self._reduce(x, c10d.ReduceOp.MIN)
        return int(x.item())

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's `x`, [R, *x.shape], on every rank."""
        gathered: Tensor = torch.empty((self.size * x.shape[0], *x.shape[1:]), dtype=x.dtype, device=x.device)
        options = c10d.AllgatherOptions()
        options.asyncOp = False
        _wait(self._connected()._allgather_base(gathered, x.contiguous(), options))
        return gathered.view(self.size, *x.shape)

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's `x`, written into everyone's. Alone, it is that already."""
        if self.size > 1:
            options = c10d.BroadcastOptions()
            options.rootRank, options.asyncOp = 0, False
            _wait(self._connected().broadcast([x], options))
        return x

    def _reduce(self, x: Tensor, reduction: Any) -> None:
        options = c10d.AllreduceOptions()
        options.reduceOp, options.asyncOp = reduction, False
        _wait(self._connected().allreduce([x], options))

    def _connected(self) -> Any:
        if self._group is None:
            raise RuntimeError(f"rank {self.rank} of {self.size} is not connected to the others")
        return self._group


ALONE = Ranks()


@dataclass(frozen=True)
class Columns:
    """Outputs of a linear layer that the ranks hold side by side, `total` of them."""

    ranks: Ranks
    total: int

    @property
    def most(self) -> int:
        """The outputs of every rank but the last, which may have fewer."""
        return -(-self.total // self.ranks.size)

    def join(self, part_BN: Tensor) -> Tensor:
        """All outputs [B, V] from each rank's."""
        padded_BN = F.pad(part_BN, (0, self.most - part_BN.shape[1]))
        return self.ranks.gather(padded_BN).transpose(0, 1).flatten(1)[:, : self.total]

    def best(self, index_B: Tensor, value_B: Tensor) -> Tensor:
        """The index int64 [B] of the best output, from the best of each rank's; the lowest index among equals."""
        index_B = index_B + self.ranks.rank * self.most
        # Both in one message. A float32 holds every value of the narrower types.
        pair_2B = torch.stack((value_B.float().view(torch.int32), index_B.to(torch.int32)))
        pairs_R2B = self.ranks.gather(pair_2B)
        winner_B = pairs_R2B[:, 0].view(torch.float32).argmax(0)
        return pairs_R2B[:, 1].gather(0, winner_B[None]).squeeze(0).long()


def meeting_point(port: int = 0) -> Any:
    """The store at which the ranks of one engine meet: a new one at a free port, or that of rank 0 by its port."""
    return TCPStore(HOST, port, is_master=port == 0, wait_for_workers=False, timeout=timedelta(seconds=TIMEOUT_S))


def _gloo(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    # All ranks are on this machine: whatever its host name resolves to does not matter.
    options = c10d.ProcessGroupGloo._Options()
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=HOST)]
    options._timeout = timeout
    return c10d.ProcessGroupGloo(store, rank, size, options)


def _nccl(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return c10d.ProcessGroupNCCL(store, rank, size, options)


def _wait(work: Any) -> None:
    # NCCL's synchronous collectives are on the current stream already and return nothing to wait for.
    if work is not None:
        work.wait()
