"""How the kernel of `decode_qkv_attention.py` divides a decode step's keys among programs, by shape and GPU.

A cut depends on the most that the block table can hold, not on the contexts: in a CUDA graph it stays valid.
"""

from dataclasses import dataclass

from engine.kernels._triton import cdiv, next_power_of_2
from engine.kernels.decode_attention import MAX_SPLITS, TILE_TOKENS
from engine.kernels.prefill_attention_sm90 import PART_KEYS
from variants.kernels.decode_qkv_attention_sm90 import NUM_WARPS
from variants.kernels.tickets import MAX_TICKETS

# fp32 elements of the workspace that a merging program holds at once.
MERGE_ELEMENTS = 4096
# Programs that a multiprocessor holds at once without a limit on their registers.
PROGRAMS_PER_SM = 3
# Of the kernel for Hopper, by the size of a head and the tiles of a ring.
HOPPER_PROGRAMS_PER_SM = {64: {3: 4, 2: 5}, 128: {3: 2, 2: 3}}
# Up to so many tiles a program is done before it gains from more programs beside it.
FEW_TILES = 4
# More parts cost more to merge than they save, and the kernel for Hopper holds all of them at once.
MAX_HOPPER_SPLITS = 8
# With more programs than so many times the places for them, they come turn after turn.
MAX_TURNS = 1.5


@dataclass(frozen=True)
class Cut:
    """How the keys are cut up: parts of a sequence, and tokens of a tile.

    With one stage the next tile travels in registers, the second one before the wait: soonest done with two tiles.
    With more, copies to shared memory are pipelined. `ahead` tiles after the first are pulled into L2 before the wait.
    `hopper` is the kernel of decode_qkv_attention_sm90.py, whose tiles and warps are given: it has `stages` tiles in
    shared memory before the wait, and `ahead` after these in L2.
    """

    splits: int
    tile: int = TILE_TOKENS
    num_warps: int = 4
    stages: int = 2
    ahead: int = 0
    hopper: bool = False


# Two tiles can be in registers before the queries are there; even so a merge takes less long than the second in turn.
SHORT_CONTEXT = 320
WHOLE = Cut(1, tile=128, num_warps=8, stages=1)
HALVES = Cut(2, tile=128, num_warps=8, stages=1)


def attention_cut(
    batch: int, num_heads: int, num_kv_heads: int, head_dim: int, max_context: int, block_size: int, sms: int,
    hopper: bool = False,
) -> Cut:  # fmt: skip
    """How to cut; `max_context` is what the block table can hold: in a CUDA graph the choice stays valid.

    `hopper` is what `hopper_takes_decode` says.
    """
    tile, pairs = min(TILE_TOKENS, block_size), batch * num_kv_heads
    if pairs <= sms and head_dim <= 128 and max_context <= SHORT_CONTEXT:
        short = _short_cut(batch, pairs, head_dim, max_context, sms, hopper)
        if short:
            return short
    if hopper:
        splits = max(1, min(sms // pairs, cdiv(max_context, PART_KEYS), MAX_HOPPER_SPLITS))
        tiles = ring_tiles(pairs, splits, head_dim, sms)
        # With turn after turn only the first would find its tiles in L2.
        ahead = int(pairs <= MAX_TURNS * HOPPER_PROGRAMS_PER_SM[head_dim][2] * sms)
        return Cut(splits, PART_KEYS, NUM_WARPS, tiles, ahead, hopper=True)
    if pairs > MAX_TICKETS:
        return Cut(1, tile)
    # The merge costs less than a second tile in turn, as long as all programs run at once and their parts are merged
    # at once.
    group_elements = next_power_of_2(num_heads // num_kv_heads) * next_power_of_2(head_dim)
    most = min(MAX_SPLITS, MERGE_ELEMENTS // group_elements)
    splits = max(1, min(PROGRAMS_PER_SM * sms // pairs, cdiv(max_context, tile), most))
    return Cut(splits, tile, ahead=int(splits * tile < max_context <= FEW_TILES * splits * tile))


def _short_cut(batch: int, pairs: int, head_dim: int, max_context: int, sms: int, hopper: bool) -> Cut | None:
    """How to cut few tiles, None where as many are: measured on an H200 (docs/data/short_contexts.json).

    A program of WHOLE or HALVES takes more than eight tenths of a multiprocessor's registers, so it begins when hardly
    any of the product before are left there. One sequence's are soon done.
    """
    if hopper and head_dim == 128 and batch > 1:
        return Cut(1, PART_KEYS, NUM_WARPS, 4 if 2 * pairs <= sms else 3, ahead=1, hopper=True)
    if max_context <= WHOLE.tile:
        return WHOLE
    if hopper and head_dim == 64:
        # Of one part's single tile a longer ring has no use; with more sequences it was faster all the same.
        parts = cdiv(max_context, PART_KEYS)
        return Cut(parts, PART_KEYS, NUM_WARPS, 2, ahead=1, hopper=True) if batch == 1 else None
    return HALVES if 2 * pairs <= sms else WHOLE


def ring_tiles(pairs: int, splits: int, head_dim: int, sms: int) -> int:
    """Tiles of keys in a program's ring, as many of values: measured on an H200 (docs/data/few_sequences.json).

    More are more bytes under way, and less room for the product before and after, or for another program.
    """
    if pairs * splits <= sms:
        return 6 if head_dim == 64 else 4 if splits > 1 else 3
    slots = {tiles: programs * sms for tiles, programs in HOPPER_PROGRAMS_PER_SM[head_dim].items()}
    # With turn after turn the smaller ring: of more programs at a time one ends, and makes room, the sooner.
    if pairs > MAX_TURNS * slots[2]:
        return 2
    # Whichever comes out fuller in the end.
    return max(slots, key=lambda tiles: pairs / (cdiv(pairs, slots[tiles]) * slots[tiles]))


def merge_chunk(splits: int, part_elements: int) -> int:
    """Parts that the merging program holds at once."""
    return max(1, min(next_power_of_2(splits), MERGE_ELEMENTS // part_elements))


def register_limit(rows: int, block_d: int, max_context: int, cut: Cut) -> int | None:
    """Registers of a thread, where the compiler must be told to leave room for four programs a multiprocessor.

    That pays where a program streams tile after tile; one with few is the sooner done without.
    """
    few = max_context <= FEW_TILES * cut.tile * cut.splits
    return 128 if block_d == 128 and rows <= 16 and not few else None
