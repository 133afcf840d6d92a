"""Large exports take a bounded number of bytes for each row; test_attribution.py bounds the time."""

from pathlib import Path

from tests.experiments.trace.scale import make, measure_apart

# 2 GB of memory for the 13 million kernels of a 2 GB export, less what the imports take, is 140 bytes for each; calls,
# ranges and all else that comes with a kernel are in it.
BYTES_PER_KERNEL = 140


def test_memory_grows_in_proportion_to_the_rows(tmp_path: Path) -> None:
    """Differences between two sizes, so that neither imports nor blocks count."""
    found = []
    for megabytes in (20, 60):
        path = tmp_path / f"{megabytes}.sqlite"
        make(path, megabytes)
        found.append(measure_apart(path))
    small, large = found
    assert (small["coverage"], large["coverage"]) == (1.0, 1.0)
    kernels = large["kernels"] - small["kernels"]
    assert kernels > 200_000
    assert large["peak_bytes"] - small["peak_bytes"] < BYTES_PER_KERNEL * kernels
