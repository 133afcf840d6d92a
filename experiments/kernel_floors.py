"""The roofline of one kernel: the least bytes and FLOP of its formula, over ceilings measured in that run.

Symbols: M rows, N outputs and K inputs of the weight, e bytes per element; n query heads, m key heads of D elements.

    norm_linear    bytes = e (N K + 3 M K + M N)            x and residual in, the new residual and y out
    linear_add     bytes = e (N K + M K + 2 M N)            x and residual in, the new residual out
    gate_up_silu   bytes = e (N K + 3 M K + M N / 2)        N counts gate and up, h has half
    lm_head        bytes = e (N K + 2 M K) + 12 M           a token and its logit a row: no logits in memory
    qkv_post       bytes = 2 e M (n + 2 m) D                read once, written once
    FLOP = 2 M N K (qkv_post: none counted)

    floor = max(bytes / read bandwidth, FLOP / bf16 rate)

Hot weights come from L2, whose bandwidth is not measured: no floor is claimed there.
"""

from experiments.floors import Work

OPS = ("norm_linear", "linear_add", "gate_up_silu", "lm_head", "qkv_post")


def kernel_work(op: str, shape: tuple[int, ...], rows: int, dtype_bytes: int) -> Work:
    """Least work of one launch of a kernel in OPS; `shape` is (N, K) or (n, m, D)."""
    if op == "qkv_post":
        heads, kv_heads, dim = shape
        return Work(2 * dtype_bytes * rows * (heads + 2 * kv_heads) * dim, 0)
    n, k = shape
    activations = {
        "norm_linear": 3 * k + n,
        "linear_add": k + 2 * n,
        "gate_up_silu": 3 * k + n / 2,
        "lm_head": 2 * k + 12 / dtype_bytes,
    }[op]
    return Work(dtype_bytes * (n * k + rows * activations), 2 * rows * n * k)
