"""The roofline of one kernel: the least bytes and FLOP of its formula, over ceilings measured in that run.

Symbols: M rows, N outputs and K inputs of the weight, e bytes per element; n query heads, m key heads of D elements.

    norm_linear    bytes = e (N K + 3 M K + M N)            x and residual in, the new residual and y out
    linear_add     bytes = e (N K + M K + 2 M N)            x and residual in, the new residual out
    gate_up_silu   bytes = e (N K + 3 M K + M N / 2)        N counts gate and up, h has half
    lm_head        bytes = e (N K + 2 M K) + 12 M           a token and its logit a row: no logits in memory
    qkv_post       bytes = 2 e M (n + 2 m) D                read once, written once
    FLOP = 2 M N K (qkv_post: none counted)

Chained, behind `linear_add`, x is the stream: no residual is read and no stream written. Its sums of squares come in P
parts a row, P = 32; lm_head reads none.

    norm_linear    bytes = e (N K + M K + M N) + 4 P M
    gate_up_silu   bytes = e (N K + M K + M N / 2) + 4 P M
    lm_head        bytes = e (N K + M K) + 12 M

    floor = max(bytes / read bandwidth, FLOP / bf16 rate)

Hot weights come from L2, whose bandwidth is not measured: no floor is claimed there.
"""

from experiments.floors import Work
from experiments.kernel_records import ALONE, CHAINED

OPS = ("norm_linear", "linear_add", "gate_up_silu", "lm_head", "qkv_post")
# Tiles of the kernel before, one sum of squares each, that chained kernels are measured with.
PARTIALS = 32


def kernel_work(op: str, shape: tuple[int, ...], rows: int, dtype_bytes: int, form: str = ALONE) -> Work:
    """Least work of one launch of a kernel in OPS; `shape` is (N, K) or (n, m, D)."""
    if op == "qkv_post":
        heads, kv_heads, dim = shape
        return Work(2 * dtype_bytes * rows * (heads + 2 * kv_heads) * dim, 0)
    n, k = shape
    sums, token = 4 * PARTIALS / dtype_bytes, 12 / dtype_bytes
    activations = {
        ("norm_linear", ALONE): 3 * k + n,
        ("norm_linear", CHAINED): k + n + sums,
        ("linear_add", ALONE): k + 2 * n,
        ("gate_up_silu", ALONE): 3 * k + n / 2,
        ("gate_up_silu", CHAINED): k + n / 2 + sums,
        ("lm_head", ALONE): 2 * k + token,
        ("lm_head", CHAINED): k + token,
    }[op, form]
    return Work(dtype_bytes * (n * k + rows * activations), 2 * rows * n * k)
