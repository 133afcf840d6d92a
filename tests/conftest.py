"""GPU honesty: GPU tests skip with a reason, and a skip under --require-gpu is a failure."""

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="fail GPU tests where there is no GPU, instead of skipping"
    )


def pytest_configure() -> None:
    """Without a GPU, Triton kernels run in Triton's interpreter; it must be chosen before anything imports Triton."""
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available() or config.getoption("--require-gpu"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here; run on one with --require-gpu"))
