"""What a search over the decode step can change: a kernel's tile, whether it runs at all, how attention is cut.

Tiles are those of `by=kernel`, fewer of them since a step takes longer to time, and before them the tiles that the
table has for the same kernel at any shape, of as many rows or of half and twice as many: what was best in one step is
often good in another.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.kernels.decode_attention import MAX_SPLITS
from experiments.kernels.candidates import Problem, candidates, is_legal, neighbours
from experiments.kernels.cases import sites
from experiments.kernels.tuning import KernelPoint
from variants.kernels.attention_cut import MAX_HOPPER_SPLITS, Cut
from variants.kernels.tickets import MAX_TICKETS
from variants.kernels.tile_table import GpuTable, Trial, rows_class
from variants.kernels.tiles import MAX_SKINNY_ROWS, Tile

ATTENTION = "attention"
# In the order of the search: where a kernel stands in a layer, then the head.
SITES = (
    ("qkv", "norm_linear"),
    ("gate_up", "gate_up_silu"),
    ("o", "linear_add"),
    ("down", "linear_add"),
    ("lm_head", "lm_head"),
)
# Kernels that are others beyond MAX_SKINNY_ROWS, on Hopper.
FOR_MANY_ROWS = ("norm_linear", "gate_up_silu")
MOST_TILES = 16
# What the tensor cores multiply at least.
LEAST_ROWS = 8
# Of the first pass's, in the second.
MOST_AGAIN = 4
CUTS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
# (tokens of a tile, warps, stages, tiles ahead) of attention.
CUT_TILES = (
    *((64, 4, 2, 0), (64, 4, 2, 1), (64, 4, 3, 0), (64, 4, 3, 1), (64, 8, 2, 0), (64, 4, 1, 0)),
    *((128, 8, 1, 0), (128, 8, 2, 0), (128, 8, 2, 1)),
)
# Tiles of a ring of the kernel for Hopper.
RINGS = (2, 3, 4, 6)
# More programs than this take turns.
MOST_PROGRAMS_PER_SM = 8


@dataclass(frozen=True)
class Choice:
    """One way to run the kernel of a site, `key` in the table, or not to run it."""

    site: str
    key: str
    fused: bool
    tile: Tile | None = None
    cut: Cut | None = None

    @property
    def label(self) -> str:
        """It in words."""
        if self.tile:
            return words(self.tile)
        if self.cut:
            return (
                f"{self.cut.splits} parts, tile {self.cut.tile}, {self.cut.num_warps} warps, {self.cut.stages} stages"
                + f", {self.cut.ahead} ahead" * (self.cut.ahead > 0)
                + ", for Hopper" * self.cut.hopper
            )
        return "on" if self.fused else "off"


def words(tile: Tile) -> str:
    """A tile, in short."""
    block = f"{tile.block_m}x{tile.block_n}x{tile.block_k}"
    parts = f", {tile.splits} parts" if tile.splits > 1 else ""
    dependent = ", dependent" * tile.dependent
    return f"{tile.path} {block}, {tile.num_warps} warps, {tile.stages} stages{parts}{dependent}"


def trial_of(choices: Iterable[Choice]) -> Trial:
    """What the engine is to run for these choices, at most one a site."""
    choices = list(choices)
    return Trial(
        tiles={choice.key: choice.tile for choice in choices if choice.tile},
        fused={choice.key: choice.fused for choice in choices},
        cut=next((choice.cut for choice in choices if choice.cut), None),
    )


def step_points(sizes: Mapping[str, Any], batch: int, ops: Sequence[str]) -> dict[str, KernelPoint]:
    """The linear layers of a model's decode step by site, those of the given kernels; equal shapes share an entry."""
    found = {site: KernelPoint(op, sites(op, sizes)[site], rows_class(batch)) for site, op in SITES if op in ops}
    first = {point: site for site, point in reversed(found.items())}
    return {site: point for site, point in found.items() if first[point] == site}


def first_choices(site: str, point: KernelPoint, problem: Problem, table: Mapping[str, GpuTable]) -> list[Choice]:
    """What is tried first: off, the kernel for many rows, the heuristic's tile, the table's, the likeliest of all."""
    known = _known(point, table)
    likely = candidates(problem, MOST_TILES)
    tiles = dict.fromkeys([likely[0], *(tile for tile in known if is_legal(tile, problem)), *likely[1:]])
    # Without a tile the product for Hopper runs, where there is one.
    on = [Choice(site, point.key, True)] if point.op in FOR_MANY_ROWS and point.rows > MAX_SKINNY_ROWS else []
    return [Choice(site, point.key, False), *on, *_with(site, point, list(tiles)[:MOST_TILES])]


def _known(point: KernelPoint, table: Mapping[str, GpuTable]) -> list[Tile]:
    """The tiles that the table has for a kernel, of these rows and then of the classes beside them, cut for these."""
    return [
        _cut_for(point.rows, tile)
        for rows in (point.rows, point.rows // 2, 2 * point.rows)
        for gpu in table.values()
        for key, found in gpu.tiles.items()
        if key.split()[0] == point.op and (tile := found.get(str(rows)))
    ]


def _cut_for(rows: int, tile: Tile) -> Tile:
    """The tile with as many rows; a wide one has others beside it."""
    if tile.path == "wide":
        return tile
    return replace(tile, block_m=rows if tile.path == "gemv" else max(LEAST_ROWS, rows))


def second_choices(
    point: KernelPoint, problem: Problem, took_us: Mapping[Choice, float], own: Choice, now: Choice
) -> list[Choice]:
    """What is tried in the light of the first pass: the engine's own choice, the best, and neighbours of the best tile.

    `now` is what the search has come to.
    """
    fastest = sorted(took_us, key=took_us.__getitem__)
    best = next((choice.tile for choice in [now, *fastest] if choice.tile), problem.heuristic())
    near = _with(own.site, point, neighbours(best, problem))
    return list(dict.fromkeys([own, *fastest[:MOST_AGAIN], *near]))


def attention_choices(batch: int, num_kv_heads: int, max_context: int, sms: int, hopper: bool = False) -> list[Choice]:
    """Attention apart from the projection's epilogue, and cuts of its keys; `max_context` fits the block table.

    `hopper` where the kernel for it can run too.
    """
    pairs = batch * num_kv_heads
    most = min(MAX_SPLITS, MOST_PROGRAMS_PER_SM * sms // pairs) if pairs <= MAX_TICKETS else 1
    cuts = [
        Cut(splits, *how) for splits in CUTS for how in CUT_TILES if splits <= max(1, min(most, max_context // how[0]))
    ]
    if hopper:
        whole = max(1, min(MAX_HOPPER_SPLITS, sms // pairs))
        parts = {splits for splits in CUTS if splits <= whole} | {whole}
        cuts += [Cut(splits, stages=ring, ahead=1, hopper=True) for splits in sorted(parts) for ring in RINGS]
    return [Choice(ATTENTION, ATTENTION, False), *(Choice(ATTENTION, ATTENTION, True, cut=cut) for cut in cuts)]


def _with(site: str, point: KernelPoint, tiles: Iterable[Tile]) -> list[Choice]:
    return [Choice(site, point.key, True, tile) for tile in tiles]
