"""The other ranks as rank 0 sees them: started, told what to run, watched, and ended.

Rank 0 owns requests, scheduling and sampling. Each of the others is a process with runners of its own, which do what
rank 0's do: rank 0 sends the name and the arguments of a method down a pipe before it runs it itself, and the ranks
meet in the collectives of the forward pass. When a rank dies its sockets close, which ends rank 0's wait for it.
"""

import contextlib
import itertools
import multiprocessing
import pickle
import signal
import time
import weakref
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import torch

from engine.config import EngineConfig, ModelConfig
from engine.errors import EngineError, UserError
from engine.parallel.device import rank_device
from engine.parallel.follow import BUILD, DROP, READY, follow
from engine.parallel.ranks import TIMEOUT_S, Ranks, meeting_point
from engine.variant import Variant

# How long a process may take to be seen as dead once its sockets are closed, and to end once its pipe is.
DEATH_S = 2.0
EXIT_S = 5.0
# How long a dying one may take to have an exit code: it closes its sockets first, and then frees its GPU memory.
REAP_S = 15.0
LOOK_S = 0.01
CLOSED = "the engine is closed; build a new one"
UNGUARDED = 'before it was ready (a script that builds an engine of several ranks needs `if __name__ == "__main__":`)'


class Followers:
    """The ranks from 1 on, for any number of engines. They end with this object, at the latest with this process.

    Started as new interpreters (multiprocessing's spawn): a script that makes them needs `if __name__ == "__main__"`.
    """

    def __init__(self, size: int, device: str) -> None:
        """Start them and meet them. UserError for want of GPUs, EngineError where one does not come up."""
        self.ranks = Ranks(0, size)
        own_device = rank_device(device, 0, size)
        self._numbers = itertools.count()
        self._dropped: list[int] = []
        self._telling = False
        self._broken: str | None = None
        self._processes: list[BaseProcess] = []
        self._pipes: list[connection.Connection] = []
        self.close = weakref.finalize(self, _end, self._processes, self._pipes, self.ranks)
        store = meeting_point()
        for rank in range(1, size):
            self._start(rank, device, store.port)
        self._meet()
        self.ranks.connect(store, own_device)

    @property
    def usable(self) -> bool:
        """Whether they can be told anything: none is lost, and nothing has gone wrong half-way."""
        return self._broken is None and self.close.alive and all(process.is_alive() for process in self._processes)

    def mirror(self, config: EngineConfig, variant: Variant, model: ModelConfig | None) -> "EngineMirror":
        """The other ranks' runners of a new engine, to be built inside `building`."""
        return EngineMirror(self, next(self._numbers), (config, variant, model))

    def abandon(self) -> None:
        """End all of them now, whatever they are doing."""
        for process in self._processes:
            process.kill()
        self.close()

    @contextlib.contextmanager
    def told(self, number: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
        """Have the others' runner of that number do something while this rank does it, inside the block.

        What is done in turn by what is done is not sent. Whatever goes wrong leaves the ranks out of step for good.
        """
        if self._telling:
            yield
            return
        self._telling = True
        try:
            self._forget_dropped()
            self._send((number, name, args, kwargs))
            yield
        except BaseException as error:
            reason = f"the ranks are out of step since {name} ended in {type(error).__name__}; build a new engine"
            self._broken = self._broken or reason
            if isinstance(error, Exception):
                self._explain(error)
            self.abandon()
            raise
        finally:
            self._telling = False

    def wait(self, event: torch.cuda.Event) -> None:
        """Wait for the GPU. Raises EngineError where a rank is lost: the GPU would wait for it forever."""
        deadline = time.monotonic() + TIMEOUT_S
        while not event.query():
            self._check()
            if time.monotonic() > deadline:
                self._give_up(f"no answer from the other ranks in {TIMEOUT_S:g} s")

    def drop(self, number: int) -> None:
        """Let the others forget a runner, at the latest before they are told something else."""
        # Called by the garbage collector too, in the middle of anything.
        self._dropped.append(number)

    def forget_dropped(self) -> None:
        """Let them forget now."""
        if self.usable:
            self._forget_dropped()

    def _start(self, rank: int, device: str, port: int) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        args = (theirs, port, Ranks(rank, self.ranks.size), device, torch.get_num_threads())
        process = context.Process(target=follow, args=args, name=f"fusebench-rank-{rank}", daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)
        self._pipes.append(ours)

    def _meet(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            connection.wait([pipe, process.sentinel])
            if (heard := _hear(pipe)) != READY:
                self._raise_lost(heard=heard or UNGUARDED)

    def _forget_dropped(self) -> None:
        while self._dropped:
            self._send((self._dropped.pop(), DROP, (), {}))

    def _send(self, message: tuple[Any, ...]) -> None:
        if self._broken:
            raise EngineError(self._broken)
        if not self.close.alive:
            raise EngineError(CLOSED)
        self._check()
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        for pipe in self._pipes:
            pipe.send_bytes(data)

    def _check(self) -> None:
        if not all(process.is_alive() for process in self._processes):
            self._raise_lost()

    def _explain(self, error: Exception) -> None:
        """Raise EngineError if what went wrong is that a rank is lost."""
        if not isinstance(error, EngineError | UserError) and self._await_death():
            self._raise_lost(error)

    def _await_death(self) -> bool:
        """Whether a process has closed its files, which is the first that is seen of its end."""
        return bool(connection.wait([process.sentinel for process in self._processes], DEATH_S))

    def _await_codes(self) -> list[tuple[int, int]]:
        """(exit code, rank) of those that have ended, at least one as a rule.

        Not by join, which waits for ever for a process that has closed its files and does not end.
        """
        deadline = time.monotonic() + (REAP_S if self._await_death() else 0.0)
        while True:
            ends = [(p.exitcode, rank) for rank, p in enumerate(self._processes, 1) if p.exitcode is not None]
            if ends or time.monotonic() > deadline:
                return ends
            time.sleep(LOOK_S)

    def _raise_lost(self, cause: Exception | None = None, heard: str = "") -> NoReturn:
        """Name the rank that has ended; `heard` is what it said last, if that is known already."""
        ends = self._await_codes()
        if not ends:
            self._give_up(f"one of {self.ranks.size} ranks gives no answer", cause)
        # A rank that was killed comes first: others may have ended for want of it.
        code, rank = min(ends)
        words = heard or _hear(self._pipes[rank - 1])
        self._give_up(f"rank {rank} of {self.ranks.size} {_ending(code)}" + (f": {words}" if words else ""), cause)

    def _give_up(self, reason: str, cause: Exception | None = None) -> NoReturn:
        self._broken = f"{reason}; build a new engine"
        self.abandon()
        raise EngineError(self._broken) from cause


class EngineMirror:
    """The other ranks' runners of one engine; they are dropped with it."""

    def __init__(self, followers: Followers, number: int, plan: tuple[Any, ...]) -> None:
        self._followers, self._number, self._plan = followers, number, plan
        self._drop = weakref.finalize(self, followers.drop, number)

    def building(self) -> contextlib.AbstractContextManager[None]:
        """Have them built while this rank builds its own, inside the block."""
        return self.told(BUILD, self._plan, {})

    def told(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
        """Have them call a method of theirs while this rank calls its own, inside the block."""
        if not self._drop.alive:
            raise EngineError(CLOSED)
        return self._followers.told(self._number, name, args, kwargs)

    def wait(self, event: torch.cuda.Event) -> None:
        """Wait for the GPU as long as all ranks live."""
        self._followers.wait(event)

    def close(self) -> None:
        """Drop them now."""
        self._drop()
        with contextlib.suppress(EngineError):
            self._followers.forget_dropped()


def _hear(pipe: connection.Connection) -> str:
    """What a rank has said, nothing if it has said nothing."""
    with contextlib.suppress(EOFError, OSError):
        if pipe.poll():
            return str(pipe.recv())
    return ""


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name} (exit code {code})"


def _end(processes: list[BaseProcess], pipes: list[connection.Connection], ranks: Ranks) -> None:
    """Close the pipes, which ends a healthy rank, and kill what has not ended by the deadline."""
    for pipe in pipes:
        pipe.close()
    deadline = time.monotonic() + EXIT_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()
    ranks.disconnect()
