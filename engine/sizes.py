"""The sizes that steps are padded to, so that a few CUDA graphs serve them all."""

from bisect import bisect_left

# Prefills of so many tokens get a graph in any model, larger ones where the GPU would wait for their launches: an H200
# multiplies so many weights by tokens while the host launches a layer, in half a millisecond. With more, padding costs
# more than a graph saves, and only a step that needs none gets one (docs/data/prefill_graphs.json).
PREFILL_GRAPH_TOKENS = 2048
LAUNCH_BOUND_PRODUCTS = 80e9
PREFILL_GRAPH_SEQS = 16
# Prompts that come while others decode: sequences and tokens that a step with both is padded to.
MIXED_GRAPH_SEQS = (1, 4, PREFILL_GRAPH_SEQS)
MIXED_GRAPH_TOKENS = (64, 128, 256, 512, 1024, 2048)
# Keys that attention has in one tile.
ONE_TILE_TOKENS = 128


def bucket_sizes(largest: int) -> list[int]:
    """Decode batch sizes to capture, so that every size up to `largest` has one at most 15 rows above it."""
    sizes = [1, 2, 4, *range(8, largest + 1, 8 if largest <= 64 else 16)]
    return sorted({*(size for size in sizes if size <= largest), largest})


def round_up(value: int, sizes: list[int]) -> int | None:
    """The smallest of `sizes`, which ascend, that holds `value`; None when none does."""
    index = bisect_left(sizes, value)
    return sizes[index] if index < len(sizes) else None


def launch_bound_tokens(layer_weights: int) -> int:
    """The most tokens whose layer is computed before the next one is launched kernel by kernel."""
    return int(LAUNCH_BOUND_PRODUCTS / layer_weights)


def prefill_sizes(max_num_batched_tokens: int, layer_weights: int) -> list[int]:
    """Numbers of tokens that prefills are padded to: every 64 up to 512, then four to each doubling, and the most."""
    most = min(max_num_batched_tokens, max(PREFILL_GRAPH_TOKENS, launch_bound_tokens(layer_weights)))
    sizes = set(range(64, 512, 64)) | {2**power * quarter // 4 for power in range(9, 31) for quarter in range(4, 8)}
    return sorted({size for size in sizes if size < most} | {most})


def mixed_sizes(
    max_num_batched_tokens: int, layer_weights: int, max_num_seqs: int
) -> tuple[list[int], list[int], list[int]]:
    """(decodes, sequences with prompts, tokens of prompts) that steps with both are padded to.

    Few of each, since every combination is captured: so only where launches take longer than what padding adds.
    """
    most = min(max_num_batched_tokens, launch_bound_tokens(layer_weights))
    tokens = [size for size in MIXED_GRAPH_TOKENS if size <= most]
    decodes = [2**power for power in range(3, 31) if 2**power < max_num_seqs]
    # Up to the first that holds all who are not decoding.
    before = (0, *MIXED_GRAPH_SEQS)
    seqs = [size for i, size in enumerate(MIXED_GRAPH_SEQS) if before[i] < max_num_seqs - 1]
    return [*decodes, max_num_seqs], seqs, tokens


def table_widths(max_model_len: int, block_size: int) -> list[int]:
    """Block-table widths to choose from, in blocks: attention divides its work by the longest context a table can hold.

    A quarter above the powers of four, since contexts tend to be a little over a round number; and before them what is
    one tile of keys, which nothing has to divide.
    """
    full = -(-max_model_len // block_size)
    tokens = (ONE_TILE_TOKENS, *(4**power * 5 // 4 for power in range(4, 16)))
    widths = {-(-count // block_size) for count in tokens}
    return sorted({width for width in widths if width < full} | {full})
