"""What models take, by formula."""

from pathlib import Path

from experiments.compose import load_yaml, names
from experiments.floors import decode_work
from experiments.reporting.blocks.registry import block, markdown
from experiments.reporting.formats import Column, Kind

BF16_BYTES = 2
# Files under configs/model that are no published model.
MADE_UP = ("tiny", "head-")


@block
def model_bytes(_root: Path) -> str:
    """What one decode step must read, and what a token of context takes, for each published model."""
    columns = (
        Column("model", "Model"),
        Column("weights_mb", "Weights read a step, MB", Kind.NUMBER),
        Column("head_share", "of it LM head", Kind.PERCENT),
        Column("kv_kib", "KV cache a token, KiB", Kind.NUMBER),
        Column("tokens_per_gib", "Tokens a GiB", Kind.COUNT),
        Column("equal_tokens", "Tokens whose KV cache equals the weights", Kind.COUNT),
    )
    rows = []
    for name in (name for name in names("model") if not name.startswith(MADE_UP)):
        sizes = load_yaml("model", name)
        weights = decode_work(sizes, [], BF16_BYTES).bytes
        kv = 2 * sizes["num_layers"] * sizes["num_kv_heads"] * sizes["head_dim"] * BF16_BYTES
        head = BF16_BYTES * sizes["vocab_size"] * sizes["hidden_size"]
        rows.append((name, weights / 1e6, head / weights, kv / 1024, 2**30 // kv, round(weights / kv)))
    return markdown(columns, rows, "bfloat16; by the formulas of `experiments/floors.py`.")
