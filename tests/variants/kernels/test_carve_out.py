"""The shared-memory carve-out: asked for whenever Triton loads a kernel, and without a driver not at all."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from engine.kernels._triton import triton
from variants.kernels import carve_out
from variants.kernels.add_squares import _add_squares_kernel, add_squares_triton


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


def test_each_loaded_kernel_asks_for_all_of_the_shared_memory_once(hooks, monkeypatch):
    driver = FakeDriver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    carve_out.use_one()
    carve_out.use_one()
    [on_load] = hooks
    on_load(1, 4711, "kernel", (), "hash")
    assert driver.asked == [(4711, 9, 100)]


def test_a_driver_that_refuses_is_told_and_the_kernel_runs_on(hooks, monkeypatch, caplog):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(status=1))
    carve_out.use_one()
    with caplog.at_level("WARNING", "fusebench.variants"):
        hooks[0](1, 4711, "kernel")
    assert "cuFuncSetAttribute gave 1" in caplog.text


def test_without_a_driver_nothing_is_asked(hooks, monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    carve_out.use_one()
    assert hooks == []


@pytest.mark.gpu
def test_the_driver_took_it():
    carve_out.use_one()
    # No other test has this width: the kernel is loaded here.
    add_squares_triton(torch.ones(1, 1 << 13, device="cuda", dtype=torch.float16), None)
    compiled = [k for cached in _add_squares_kernel.device_caches.values() for k in cached[0].values()]
    value = ctypes.c_int()
    function = ctypes.c_void_p(compiled[-1].function)
    driver = ctypes.CDLL("libcuda.so.1")
    attribute = carve_out.PREFERRED_SHARED_MEMORY_CARVEOUT
    assert driver.cuFuncGetAttribute(ctypes.byref(value), attribute, function) == 0
    assert value.value == carve_out.ALL
    assert triton.knobs.runtime.kernel_load_end_hook.calls
