"""Rounds are complete, balanced and decided by the seed alone."""

import itertools
import time
from collections import Counter
from random import Random

import pytest

from experiments.compose import compose
from experiments.config import ExperimentConfig
from experiments.plan import Plan, balanced_orders, make_plan
from experiments.records import Cell

VARIANTS = ["baseline", "folded", "fused", "norm_linear", "compiled"]


def config(num_variants: int = 3, *overrides: str) -> ExperimentConfig:
    listed = ",".join(VARIANTS[:num_variants])
    return compose(["experiment=demo", f"variants=[{listed}]", f"protocol.rounds={2 * num_variants}", *overrides])


def plan(num_variants: int = 3, *overrides: str, alone: frozenset[str] = frozenset()) -> Plan:
    return make_plan(config(num_variants, *overrides), ["m", "n"], alone)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8])
def test_every_variant_stands_everywhere_and_follows_everyone_equally_often(n: int) -> None:
    rows = list(itertools.islice(balanced_orders("abcdefgh"[:n], Random(n)), 2 * n))
    assert all(sorted(row) == sorted("abcdefgh"[:n]) for row in rows)
    for square in (rows[:n], rows[n:]):
        assert all(count == 1 for count in Counter((i, v) for row in square for i, v in enumerate(row)).values())
    follows = Counter(pair for row in rows for pair in itertools.pairwise(row))
    assert set(follows.values()) <= {2}
    assert len(follows) == n * (n - 1)


@pytest.mark.parametrize("num_variants", [1, 2, 3, 5])
@pytest.mark.parametrize("alone", [frozenset(), frozenset({"m", "n"})])
def test_every_cell_is_planned_once(num_variants: int, alone: frozenset[str]) -> None:
    cells = plan(num_variants, alone=alone).cells
    assert len(cells) == len(set(cells)) == 2 * 8 * num_variants * 2 * num_variants
    assert len({cell.id for cell in cells}) == len(cells)
    # A model at a time, and within it a round at a time.
    assert [cell.point.model for cell in cells] == sorted(cell.point.model for cell in cells)
    for _, of_model in itertools.groupby(cells, key=lambda cell: cell.point.model):
        rounds = [cell.round for cell in of_model]
        assert rounds == sorted(rounds)


def test_variants_of_a_point_are_neighbours_in_balanced_order() -> None:
    cells = plan(3).cells
    places = Counter[tuple[str, int]]()
    for start in range(0, len(cells), 3):
        together = cells[start : start + 3]
        assert len({(cell.point, cell.round) for cell in together}) == 1
        places.update((cell.variant, place) for place, cell in enumerate(together))
    assert len(set(places.values())) == 1


def test_points_are_shuffled_anew_in_every_round() -> None:
    def order(round_: int, cells: tuple[Cell, ...]) -> list[str]:
        return [str(c.point) for c in cells if c.round == round_ and c.variant == "baseline" and c.point.model == "m"]

    cells = plan(3).cells
    assert len({tuple(order(round_, cells)) for round_ in range(6)}) == 6


def test_one_process_per_variant_and_round_where_they_do_not_fit() -> None:
    planned = plan(3, alone=frozenset({"n"}))
    assert [model.by_process for model in planned.models] == [False, True]
    runs = [key for key, _ in itertools.groupby(planned.models[1].cells, key=lambda cell: (cell.round, cell.variant))]
    assert len(runs) == 6 * 3
    assert all(count == 2 for count in Counter((v, i % 3) for i, (_, v) in enumerate(runs)).values())


def test_a_workload_may_be_kept_to_some_models() -> None:
    planned = make_plan(config(3, "workload.prefill.models=[n]"), ["m", "n"])
    assert [{point.workload for point in model.points} for model in planned.models] == [
        {"decode"},
        {"decode", "prefill"},
    ]


def test_the_seed_decides() -> None:
    assert plan(3) == plan(3)
    assert plan(3).digest == plan(3).digest
    assert plan(3).digest != plan(3, "seed=1").digest
    assert (plan(3, "seed=1").seed, plan(3, "seed=1").rounds) == (1, 6)
    # Another model in the list does not disturb the order of the first.
    assert make_plan(config(), ["m"]).models[0] == plan(3).models[0]


def test_ten_thousand_cells_are_planned_in_two_seconds() -> None:
    batches = ",".join(map(str, range(1, 26)))
    lengths = ",".join(map(str, range(16, 26)))
    asked = config(5, f"batches=[{batches}]", f"lengths=[{lengths}]", "protocol.rounds=4")
    start = time.process_time()
    planned = make_plan(asked, ["m"])
    assert len(planned.digest) == 64
    assert time.process_time() - start < 2
    assert len(planned.cells) == 25 * 10 * 2 * 5 * 4
