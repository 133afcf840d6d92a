"""GPU honesty: GPU tests skip with a reason, and a skip under --require-gpu is a failure."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from engine.parallel.followers import Followers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="fail GPU tests where there is no GPU, instead of skipping"
    )
    parser.addoption("--full-parity", action="store_true", help="20 prompts of 64 tokens on the real model: minutes")


def pytest_configure() -> None:
    """Without a GPU, Triton kernels run in Triton's interpreter; it must be chosen before anything imports Triton."""
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    # Tensors here are tiny, and threads that wait for each other cost more than they compute.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available() or config.getoption("--require-gpu"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here; run on one with --require-gpu"))


@pytest.fixture(scope="session")
def followers() -> "Iterator[Followers]":
    """A second rank on the CPU, for all tests that need one."""
    from engine.parallel.followers import Followers
    from tests.ranks import forked_ranks

    with forked_ranks():
        others = Followers(2, "cpu")
    yield others
    others.close()
