"""However a plan is cut: every cell once, pairs together, balanced, models whole where that costs little."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.cluster.shards import SLACK, Shard, make_shards
from experiments.plan import ModelPlan, Plan, missing_cells
from experiments.records import Cell, Point


def make_plan(sizes: list[int], variants: int = 2, rounds: int = 2) -> Plan:
    """Models m0, m1, ... with so many points each."""
    names = tuple(f"v{i}" for i in range(variants))
    models = []
    for number, size in enumerate(sizes):
        points = tuple(Point(f"m{number}", "decode", 1, length) for length in range(1, size + 1))
        cells = tuple(Cell(p, v, r) for r in range(rounds) for p in reversed(points) for v in names)
        models.append(ModelPlan(f"m{number}", points, cells))
    return Plan(0, rounds, names, tuple(models))


plans = st.builds(make_plan, st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 4))


@given(plan=plans, count=st.integers(1, 20), data=st.data())
@settings(max_examples=100, deadline=None)
def test_every_missing_cell_is_in_one_shard(plan: Plan, count: int, data: st.DataObject) -> None:
    done = data.draw(st.sets(st.sampled_from(plan.cells)))
    missing = missing_cells(plan.cells, done)
    shards = make_shards(plan, missing, count)
    owner = {point: shard.id for shard in shards for point in shard.points}
    assert sum(len(shard.points) for shard in shards) == len(owner)
    assert owner.keys() == {cell.point for cell in missing}
    assert len({shard.id for shard in shards}) == len(shards) <= count
    assert all(shard.points for shard in shards)
    # Nothing done is lost from sight, and each round of a point is missing as a whole or not at all.
    assert set(missing) | done == set(plan.cells)
    whole = Counter((cell.point, cell.round) for cell in missing)
    assert set(whole.values()) <= {len(plan.variants)}
    assert missing == [cell for cell in plan.cells if cell in set(missing)]


@given(plan=plans, count=st.integers(1, 20), data=st.data())
@settings(max_examples=100, deadline=None)
def test_shards_are_balanced(plan: Plan, count: int, data: st.DataObject) -> None:
    """Either end of a shard lies at most SLACK shares, or half a point, from where it should."""
    missing = missing_cells(plan.cells, data.draw(st.sets(st.sampled_from(plan.cells))))
    if not missing:
        return
    weight = Counter(cell.point for cell in missing)
    shards = make_shards(plan, missing, count)
    share = len(missing) / min(count, len(weight))
    off = max(SLACK * share, max(weight.values()) / 2)
    for shard in shards:
        assert sum(weight[point] for point in shard.points) <= share + 2 * off + 1e-9
    # A shard is lost only where a single point is heavier than a share.
    assert len(shards) == min(count, len(weight)) or max(weight.values()) > share


@given(plan=plans, count=st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_a_model_is_loaded_once_more_for_each_cut_at_most(plan: Plan, count: int) -> None:
    shards = make_shards(plan, plan.cells, count)
    loads = sum(len({point.model for point in shard.points}) for shard in shards)
    assert loads <= len(plan.models) + len(shards) - 1


def models(shards: tuple[Shard, ...]) -> list[list[str]]:
    return [sorted({point.model for point in shard.points}) for shard in shards]


def test_models_stay_whole_where_it_balances() -> None:
    assert models(make_shards(make_plan([8, 7, 6]), make_plan([8, 7, 6]).cells, 3)) == [["m0"], ["m1"], ["m2"]]
    assert models(make_shards(make_plan([4, 4]), make_plan([4, 4]).cells, 2)) == [["m0"], ["m1"]]
    # The headline's: seven points, seven and six.
    assert models(make_shards(make_plan([7, 7, 6]), make_plan([7, 7, 6]).cells, 2)) == [["m0"], ["m1", "m2"]]
    # Two thirds and one third is no balance.
    thirds = make_shards(make_plan([4, 4, 4]), make_plan([4, 4, 4]).cells, 2)
    assert [len(shard.points) for shard in thirds] == [6, 6]


def test_what_is_done_weighs_nothing() -> None:
    plan = make_plan([6])
    left = [cell for cell in plan.cells if cell.point.length > 2 or cell.round]
    missing = missing_cells(plan.cells, set(plan.cells) - set(left))
    assert missing == left
    # Two points lack one round and four lack two, two cells each: 2 + 2 + 4 cells, then 4 + 4 + 4.
    assert [len(shard.points) for shard in make_shards(plan, missing, 2)] == [3, 3]
    assert [shard.id for shard in make_shards(plan, missing, 2, launch=3)] == ["03-00", "03-01"]
