"""Second ranks for tests, forked from a server that has imported torch once; those of users are spawned, in seconds."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def forked_ranks() -> Iterator[None]:
    """Inside the block a new rank is there within milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["engine.parallel.follow"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method: context)
        yield
