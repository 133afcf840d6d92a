"""The table of measured tiles: looked up by GPU and shape alone, and where there is none the heuristic goes on."""

import json
import logging
from dataclasses import asdict, replace
from unittest.mock import Mock

import pytest
import torch

from variants import dispatch
from variants.kernels import tile_table
from variants.kernels.tile_table import (
    FILE,
    GpuTable,
    Trial,
    choose_tile,
    key_of,
    measured_for,
    measured_on,
    on_trial,
    read_table,
    rows_class,
    shape_of,
    trying,
)
from variants.kernels.tiles import Tile, linear_tile

TILE = Tile("skinny", 8, 32, 256, 4, 3, 2)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if tensors were on a GPU with one tile and one bound."""
    known = GpuTable({"linear_add 64x128": {"8": TILE}}, {"linear_add 64x128": 4})
    monkeypatch.setattr(tile_table, "measured_for", lambda x: known)
    monkeypatch.setattr(dispatch, "measured_for", lambda x: known)


def inputs(rows: int, n: int = 64, k: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rows, k, dtype=torch.bfloat16), torch.zeros(n, k, dtype=torch.bfloat16)


def test_a_measured_tile_is_taken_for_its_class_of_rows_only(on_gpu: None) -> None:
    for rows in (5, 6, 7, 8):
        assert rows_class(rows) == 8
        assert choose_tile("linear_add", *inputs(rows), can_split=True) == TILE
    for rows in (4, 9):
        assert choose_tile("linear_add", *inputs(rows), can_split=True) == linear_tile(
            rows, 64, 128, 2, 132, can_split=True
        )


def test_other_kernels_and_shapes_keep_the_heuristic(on_gpu: None) -> None:
    assert choose_tile("norm_linear", *inputs(8)) == linear_tile(8, 64, 128, 2, 132)
    assert choose_tile("linear_add", *inputs(8, n=72), can_split=True) == linear_tile(
        8, 72, 128, 2, 132, can_split=True
    )
    assert choose_tile("gate_up_silu", *inputs(8), matrices=2) == linear_tile(8, 32, 128, 2, 132, matrices=2)


def test_a_measured_bound_decides_what_pays(on_gpu: None) -> None:
    assert dispatch.pays_here("residual_epilogue", *inputs(4))
    assert not dispatch.pays_here("residual_epilogue", *inputs(5))
    for rows in (16, 17, 64):
        assert dispatch.pays_here("norm_linear", *inputs(rows)) == (rows <= dispatch.most_rows("norm_linear", 64, 128))


def test_classes_of_rows_that_are_slower_stay_apart_below_the_bound(
    on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = GpuTable({}, {"linear_add 64x128": 64}, apart={"linear_add 64x128": [8]})
    monkeypatch.setattr(dispatch, "measured_for", lambda x: measured)
    paying = [rows for rows in (1, 4, 5, 8, 9, 64, 65) if dispatch.pays_here("residual_epilogue", *inputs(rows))]
    assert paying == [1, 4, 9, 64]


def test_what_is_on_trial_goes_before_table_bounds_and_heuristics(on_gpu: None) -> None:
    tile = Tile("skinny", 8, 16, 64, 2, 2)
    trial = Trial(
        {"linear_add 64x128": tile}, {"linear_add 64x128": True, "norm_linear 64x128": False, "attention": False}
    )
    with trying(trial):
        assert choose_tile("linear_add", *inputs(8), can_split=True) == tile
        assert choose_tile("norm_linear", *inputs(8)) == linear_tile(8, 64, 128, 2, 132)
        assert dispatch.pays_here("residual_epilogue", *inputs(5))
        assert not dispatch.pays_here("norm_linear", *inputs(1))
        assert not dispatch.attention_pays(1, hopper=True)
    assert choose_tile("linear_add", *inputs(8), can_split=True) == TILE
    assert not dispatch.pays_here("residual_epilogue", *inputs(5))
    assert dispatch.attention_pays(64, hopper=False)
    assert not dispatch.attention_pays(65, hopper=False)
    assert dispatch.attention_pays(65, hopper=True)


def test_with_many_rows_nothing_stands_for_a_product_that_is_on_trial() -> None:
    """Neither cuBLAS that adds nor whole heads, unless those are asked for: the trial would time them instead."""
    x, weight = inputs(1024)
    assert dispatch.product_adds(x, weight)
    assert not dispatch.product_adds(x[:-1], weight)
    assert dispatch.whole_heads_pay(x, weight)
    for fused in (True, False):
        with trying(Trial(fused={"linear_add 64x128": fused})):
            assert not dispatch.product_adds(x, weight)
            assert dispatch.pays_here("residual_epilogue", x, weight) == fused
            assert dispatch.whole_heads_pay(x, weight)
        with trying(Trial(fused={"norm_linear 64x128": fused})):
            assert dispatch.product_adds(x, weight)
            assert not dispatch.whole_heads_pay(x, weight)
        with trying(Trial(fused={"norm_linear 64x128": fused, "whole_heads": True})):
            assert dispatch.whole_heads_pay(x, weight)


def test_a_trial_ends_with_its_block_whatever_happens() -> None:
    outer, inner = Trial({}, {"a": True}), Trial({}, {"a": False})
    with trying(outer):
        with pytest.raises(ZeroDivisionError), trying(inner):
            1 / (on_trial() == outer)
        assert on_trial() == outer
    assert on_trial() == Trial()


def test_a_cpu_has_no_measurements() -> None:
    assert measured_for(torch.zeros(1, dtype=torch.bfloat16)) == GpuTable()


def test_a_gpu_has_its_own_measurements_for_elements_of_two_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = ["NVIDIA One", "NVIDIA Other"]
    known = {name: GpuTable({}, {"linear_add 64x128": rows}) for rows, name in enumerate(gpus, start=4)}
    monkeypatch.setattr(tile_table, "_gpu_name", gpus.__getitem__)
    monkeypatch.setattr(tile_table, "measured_on", known.__getitem__)

    def on(index: int, itemsize: int) -> GpuTable:
        return measured_for(
            Mock(is_cuda=True, **{"element_size.return_value": itemsize, "get_device.return_value": index})
        )

    assert [on(index, 2) for index in (0, 1)] == list(known.values())
    assert on(1, 4) == GpuTable()


def test_an_unknown_gpu_works_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    measured_on.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert measured_on("NVIDIA Nonesuch") == GpuTable()
        assert measured_on("NVIDIA Nonesuch") == GpuTable()
    assert [record.getMessage() for record in caplog.records] == [
        "no tiles were measured on NVIDIA Nonesuch: a heuristic chooses them; `fusebench tune` measures"
    ]


def test_a_known_gpu_has_its_part_of_the_table_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    table = read_table(FILE.read_text(encoding="utf-8"))
    measured_on.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert {gpu: measured_on(gpu) for gpu in table} == table
    assert table
    assert not caplog.records


def test_tables_are_read_back_and_other_versions_refused() -> None:
    gpu = {"tiles": {"linear_add 64x128": {"8": asdict(TILE)}}, "fused_up_to_rows": {"linear_add 64x128": 4}}
    found = read_table(json.dumps({"schema": 1, "gpus": {"X": gpu, "Y": gpu | {"apart": {"lm_head 5x3": [2]}}}}))
    known = GpuTable({"linear_add 64x128": {"8": TILE}}, {"linear_add 64x128": 4})
    assert found == {"X": known, "Y": replace(known, apart={"lm_head 5x3": [2]})}
    with pytest.raises(ValueError, match="schema 2"):
        read_table('{"schema": 2, "gpus": {}}')


def test_the_shipped_table_is_legal() -> None:
    """Whoever commits measurements commits tiles that the kernels can run."""
    for gpu, measured in read_table(FILE.read_text(encoding="utf-8")).items():
        assert gpu.startswith(("NVIDIA", "AMD"))
        for key, tiles in measured.tiles.items():
            assert key.split()[0] in dispatch.KERNELS.values()
            for rows, tile in tiles.items():
                assert tile.path == "wide" or tile.block_m >= int(rows)
                assert rows_class(int(rows)) == int(rows)
        for key, classes in measured.apart.items():
            assert key in measured.fused_up_to_rows
            assert all(rows_class(rows) == rows for rows in classes)


def test_weights_up_to_sixteen_mebi_are_small() -> None:
    """A square of 4,096 is; what is large has a bound that is no higher."""
    for rung in dispatch.MAX_ROWS:
        small, large = dispatch.MAX_ROWS[rung]
        assert dispatch.most_rows(rung, 4096, 4096) == small >= large == dispatch.most_rows(rung, 4097, 4096)
    x, *weights = (torch.empty(shape, device="meta") for shape in ((1024, 1), (4096, 4096), (4097, 4096)))
    assert [dispatch.whole_heads_pay(x, weight) for weight in weights] == [True, False]


def test_every_rung_with_a_bound_has_its_kernel() -> None:
    assert set(dispatch.KERNELS) == set(dispatch.MAX_ROWS)
    assert key_of("lm_head", 5, 3) == "lm_head 5x3"
    assert shape_of(key_of("lm_head", 5, 3)) == ("lm_head", 5, 3)
