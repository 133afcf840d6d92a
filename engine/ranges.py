"""NVTX ranges: phases and steps always, layers and ops only while a trace is being made.

Grammar, read back by experiments/trace: `phase/<name>`, `step/<i>`, `capture/<graph key>`, `layer/<i|embed|head>`,
`op/<name>`, `rung/<name>`. Python runs once per captured graph, so layer and op ranges pushed during capture name its
kernels for good.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import nvtx

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

Opener = Callable[[str], AbstractContextManager[object]]

_detail = False
_mirror: Opener | None = None


class span:
    """A push/pop range around a block. A class: every step opens four, and generators cost more."""

    __slots__ = ("_mirrored", "_name")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        nvtx.push_range(self._name)
        self._mirrored = None if _mirror is None else _mirror(self._name)
        if self._mirrored is not None:
            self._mirrored.__enter__()

    def __exit__(self, *raised: Any) -> None:
        if self._mirrored is not None:
            self._mirrored.__exit__(*raised)
        nvtx.pop_range()


@contextmanager
def mirrored(opener: Opener) -> Iterator[None]:
    """Open every range a second time, for a profiler that does not read NVTX."""
    global _mirror
    before, _mirror = _mirror, opener
    try:
        yield
    finally:
        _mirror = before


@contextmanager
def detail() -> Iterator[None]:
    """Switch layer and op ranges on for a block: costs host time, so never inside a timed region."""
    global _detail
    before, _detail = _detail, True
    try:
        yield
    finally:
        _detail = before


@contextmanager
def layer(name: str | int) -> Iterator[None]:
    """The range of one layer, when detail is on."""
    if not _detail:
        yield
        return
    with span(f"layer/{name}"):
        yield


def rung(name: str) -> None:
    """Leave a mark that a fusion takes the work that follows, when detail is on: a trace must then hold its kernel."""
    if _detail:
        with span(f"rung/{name}"):
            pass


def op(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Give a method of `Ops` its own range, when detail is on."""
    name = f"op/{method.__name__}"

    @functools.wraps(method)
    def traced(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not _detail:
            return method(self, *args, **kwargs)
        with span(name):
            return method(self, *args, **kwargs)

    traced.__dict__["is_op"] = True
    return traced
