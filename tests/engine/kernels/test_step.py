"""The kernels that move a decode step on, against their twins: integers, so to the bit."""

import pytest
import torch

from engine.kernels.step import advance_reference, advance_triton, publish_reference, publish_triton
from tests.kernel_gates import DEVICE


def index(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("num_rows", [1, 3, 64, 65, 130])
def test_a_step_advances_as_its_twin(num_rows: int) -> None:
    """Ends of programs and of blocks; every third row is padding."""
    block_size, width = 16, 5
    generator = torch.Generator().manual_seed(num_rows)
    positions = torch.randint(-1, block_size * width - 1, (num_rows,), generator=generator).tolist()
    positions = [-(2**30) if row % 3 == 2 else at for row, at in enumerate(positions)]
    tables = torch.randperm(num_rows * width, generator=generator).reshape(num_rows, width).tolist()
    last_token = torch.arange(1000, 1000 + num_rows, device=DEVICE)
    rows = index(torch.randperm(num_rows, generator=generator).tolist())
    mine, theirs = index(positions), index(positions)
    found = advance_triton(rows, mine, index(tables), last_token, block_size)
    expected = advance_reference(rows, theirs, index(tables), last_token, block_size)
    assert torch.equal(mine, theirs)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_rows", [1, 64, 65])
def test_tokens_are_published_as_by_the_twin(num_rows: int) -> None:
    tokens = torch.arange(5000, 5000 + num_rows, device=DEVICE)
    rows = index(torch.randperm(num_rows + 7).tolist()[:num_rows])
    mine, theirs = (torch.zeros(num_rows + 7, dtype=torch.int64, device=DEVICE) for _ in range(2))
    publish_triton(tokens, rows, mine)
    publish_reference(tokens, rows, theirs)
    assert torch.equal(mine, theirs)
