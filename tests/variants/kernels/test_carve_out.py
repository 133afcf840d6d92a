"""The shared-memory carve-out: asked for whenever Triton loads a kernel, and without a driver not at all."""

import ctypes
import json
from types import SimpleNamespace

import pytest
import torch

from variants.kernels import carve_out
from variants.kernels.norm_linear import _norm_linear_kernel, norm_linear_triton
from variants.kernels.tiles import Tile


class FakeDriver:
    def __init__(self, status=0):
        self.status, self.asked = status, []

    def cuFuncSetAttribute(self, function, attribute, value):
        self.asked.append((function.value, attribute, value))
        return self.status


@pytest.fixture
def hooks(monkeypatch):
    """The hooks that Triton would call with (module, function, name, metadata, hash)."""
    found = []
    knobs = SimpleNamespace(runtime=SimpleNamespace(kernel_load_end_hook=SimpleNamespace(add=found.append)))
    monkeypatch.setattr(carve_out, "triton", SimpleNamespace(knobs=knobs))
    monkeypatch.setattr(carve_out, "INTERPRETED", False)
    carve_out.use_one.cache_clear()
    yield found
    carve_out.use_one.cache_clear()


def files(folder, shared):
    """What Triton's cache has of a kernel."""
    (folder / "kernel.json").write_text(json.dumps({"name": "kernel", "shared": shared}))
    return {"kernel.cubin": str(folder / "kernel.cubin"), "kernel.json": str(folder / "kernel.json")}


def test_kernels_with_tiles_in_shared_memory_ask_for_all_of_it(hooks, monkeypatch, tmp_path):
    driver = FakeDriver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    carve_out.use_one()
    carve_out.use_one()
    [on_load] = hooks
    on_load(1, 4711, "held", files(tmp_path, 48 * 1024), "hash")
    on_load(1, 4712, "gemv", files(tmp_path, 512), "hash")
    on_load(1, 4713, "of another cache", {}, "hash")
    assert driver.asked == [(4711, 9, 100)]


def test_a_driver_that_refuses_is_told_and_the_kernel_runs_on(hooks, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(status=1))
    carve_out.use_one()
    with caplog.at_level("WARNING", "fusebench.variants"):
        hooks[0](1, 4711, "held", files(tmp_path, 48 * 1024))
    assert "held keeps its own carve-out: cuFuncSetAttribute gave 1" in caplog.text


def test_without_a_driver_nothing_is_asked(hooks, monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    carve_out.use_one()
    assert hooks == []


@pytest.mark.gpu
def test_the_driver_took_it():
    carve_out.use_one()
    # No other test has this shape: the kernel is loaded here.
    x, weight = (torch.ones(rows, 1 << 10, device="cuda", dtype=torch.float16) for rows in (8, 48))
    norm_linear_triton(x, None, weight, None, 1e-3, tile=Tile("held", 8, 32, 1 << 10, num_warps=8, stages=1))
    compiled = [k for cached in _norm_linear_kernel.device_caches.values() for k in cached[0].values()]
    held = [k for k in compiled if k.metadata.shared >= carve_out.LEAST_SHARED_BYTES]
    value, function = ctypes.c_int(), ctypes.c_void_p(held[-1].function)
    driver = ctypes.CDLL("libcuda.so.1")
    attribute = carve_out.PREFERRED_SHARED_MEMORY_CARVEOUT
    assert driver.cuFuncGetAttribute(ctypes.byref(value), attribute, function) == 0
    assert value.value == carve_out.ALL
