"""Methods that run on every rank at once."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class Mirror(Protocol):
    """The runners of the other ranks that do what one on rank 0 does."""

    def told(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[None]:
        """Have them call a method of theirs while this rank calls its own, inside the block."""

    def wait(self, event: torch.cuda.Event) -> None:
        """Wait for the GPU as long as all ranks live."""


class HasMirror(Protocol):
    """What `on_every_rank` asks of a method's object: None stands for no other ranks, and for being one of them."""

    mirror: Mirror | None


S = TypeVar("S", bound=HasMirror)


def on_every_rank(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Make a method run on every rank; its arguments are pickled, its results stay with each rank."""

    @functools.wraps(method)
    def everywhere(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.mirror is None:
            return method(self, *args, **kwargs)
        with self.mirror.told(method.__name__, args, kwargs):
            return method(self, *args, **kwargs)

    return everywhere
