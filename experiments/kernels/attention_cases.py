"""The fused kernels between the QKV projection and the output projection, beside what they replace.

Shape suffixes: T tokens (sequences of one new token each), O packed outputs, P positions or pages. A shape is (query
heads, key heads, head dim).

    qkv_post    q norm | k norm | RoPE | KV store              ->  one kernel
    attention   qkv_post | paged attention | merge of parts    ->  one kernel
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from engine.kernels._triton import num_sms
from engine.kernels.decode_attention import paged_decode_attention_reference, paged_decode_attention_triton
from engine.kernels.kv_store import store_kv_reference, store_kv_triton
from engine.kernels.norm import rms_norm_reference, rms_norm_triton
from engine.kernels.rope import rope_reference, rope_triton
from experiments.kernels.case import EPS, Case, Deviation, How, Outputs, Shape, doubled
from experiments.kernels.figures import changed_bytes, randn, relative_error, strided, tolerance, unit_roundoff
from variants.kernels.attention_cut import attention_cut
from variants.kernels.decode_qkv_attention import decode_qkv_attention_reference, decode_qkv_attention_triton
from variants.kernels.decode_qkv_attention_sm90 import hopper_takes_decode
from variants.kernels.qkv_post import qk_norm_rope_store_reference, qk_norm_rope_store_triton
from variants.kernels.tiles import Tile

BLOCK_SIZE = 64
# A new key alone, at the start of a page and of a tile, at their ends, far behind.
CONTEXTS = (1, 150, 64, 65, 129, 300)
# Every so many rows one so long that its keys are cut into parts, or into more tiles than a ring for Hopper has.
LONG_CONTEXT, ROWS_TO_LONG = 700, 9


@dataclass(frozen=True)
class QkvPost(Case):
    """Per-head norm, RoPE and the store to the pages."""

    qkv_TO: Tensor
    q_norm_D: Tensor
    k_norm_D: Tensor
    cos_PD2: Tensor
    sin_PD2: Tensor
    positions_T: Tensor
    slots_T: Tensor
    k_cache: Tensor
    v_cache: Tensor
    tables_TP: Tensor
    lens_T: Tensor
    heads: Shape

    OP: ClassVar[str] = "qkv_post"
    RUNG: ClassVar[str] = "qkv_post"
    SHAPES: ClassVar[tuple[Shape, ...]] = ((9, 3, 64), (5, 1, 80))
    REAL_SHAPES: ClassVar[tuple[Shape, ...]] = ((16, 8, 128), (32, 8, 128), (14, 2, 64), (15, 5, 64), (12, 4, 96))
    FEW_ROWS: ClassVar[tuple[int, ...]] = (1, 2, 7)
    ROWWISE: ClassVar[tuple[str, ...]] = ("qkv_TO", "positions_T", "slots_T", "tables_TP", "lens_T")

    @classmethod
    def draw(
        cls, shape: Shape, rows: int, dtype: torch.dtype, device: torch.device, plain: bool = False, seed: int = 0
    ) -> Self:
        """No slot that must not be read or written holds a number. Not plain: rows apart, padded, of many lengths."""
        n, m, d = shape
        lens = [BLOCK_SIZE if plain else _context_len(row) for row in range(rows)]
        tables, num_pages = _tables(lens)
        lens_T = torch.tensor(lens, dtype=torch.int32)
        last = (lens_T - 1).clamp(min=0).long()
        slots = tables.gather(1, (last // BLOCK_SIZE)[:, None])[:, 0] * BLOCK_SIZE + last % BLOCK_SIZE
        slots[lens_T == 0] = -1
        cache = randn(num_pages, BLOCK_SIZE, 2 * m, d, dtype=dtype, seed=seed, device=device)
        k_cache, v_cache = (part.contiguous() for part in cache.chunk(2, dim=2))
        for pool in (k_cache, v_cache):
            _poison_unread(pool, tables, lens)
        qkv = randn(rows, (n + 2 * m) * d, dtype=dtype, seed=seed + 1, device=device)
        angles = torch.arange(max(LONG_CONTEXT, *CONTEXTS))[:, None] / 10_000.0 ** (torch.arange(0, d, 2) / d)
        q_norm, k_norm = (1 + randn(d, dtype=dtype, seed=seed + s, device=device, scale=0.1) for s in (2, 3))
        qkv = qkv if plain else strided(qkv)
        cos, sin, positions, slots, tables, lens_T = (
            x.to(device) for x in (angles.cos(), angles.sin(), lens_T - 1, slots.int(), tables.int(), lens_T)
        )
        return cls(
            qkv, q_norm, k_norm, cos, sin, positions, slots, k_cache, v_cache, tables, lens_T, shape
        )  # fmt: skip

    def arguments(self) -> tuple[Any, ...]:
        """Those of `qk_norm_rope_store` but for `pdl`."""
        projected = (self.qkv_TO, self.q_norm_D, self.k_norm_D, self.cos_PD2, self.sin_PD2)
        return (*projected, self.positions_T, self.slots_T, self.k_cache, self.v_cache, *self.heads, EPS)

    def launch(self, how: How, pdl: bool = False, tile: Tile | None = None) -> Any:
        """Rotated queries."""
        kernel: Callable[..., Any] = qk_norm_rope_store_triton if how == "triton" else qk_norm_rope_store_reference
        return kernel(*self.arguments(), pdl=pdl)

    def launch_unfused(self, how: How) -> Any:
        """The same by four kernels."""
        norm, rotate, store = (
            (rms_norm_triton, rope_triton, store_kv_triton)
            if how == "triton"
            else (rms_norm_reference, rope_reference, store_kv_reference)
        )
        n, m, d = self.heads
        q, k, v = self.qkv_TO.unflatten(-1, (-1, d)).split((n, m, m), dim=1)
        q, k = norm(q, self.q_norm_D, EPS), norm(k, self.k_norm_D, EPS)
        q, k = rotate(q, k, self.positions_T, self.cos_PD2, self.sin_PD2)
        store(k, v, self.k_cache, self.v_cache, self.slots_T)
        return q

    def outputs(self, launched: Any) -> Outputs:
        """(queries or attention, stored keys, stored values), zero for padded rows."""
        live = (self.slots_T >= 0)[:, None]
        slots = self.slots_T.clamp(min=0).long()
        stored = (pool.flatten(0, 1)[slots].flatten(1) for pool in (self.k_cache, self.v_cache))
        return tuple(rows.where(live, 0) for rows in (launched.flatten(1), *stored))

    def oracle(self) -> Outputs:
        """In float64, but for the rotary tables."""
        case = replace(self.fresh(), **doubled(self.fresh(), but=("cos_PD2", "sin_PD2")))
        return case.outputs(case.launch("twin"))

    def bound(self) -> float:
        """One rounding."""
        return tolerance(self.dtype)

    def others(self, outputs: Outputs, oracle: Outputs) -> list[Deviation]:
        """Keys, where one short head may carry a whole unit of rounding and not the mean; values, to the bit."""
        bound = tolerance(self.dtype) + 0.2 * unit_roundoff(self.dtype)
        return [
            Deviation("stored keys", relative_error(outputs[1], oracle[1]), bound),
            Deviation("stored values", relative_error(outputs[2], oracle[2]), 0.0),
        ]

    def strays(self, before: Self) -> int:
        """Bytes of the caches that were written although they are no new token's."""
        slots = self.slots_T[self.slots_T >= 0].long()
        strays = 0
        for now, then in ((self.k_cache, before.k_cache), (self.v_cache, before.v_cache)):
            left, right = now.flatten(0, 1).clone(), then.flatten(0, 1).clone()
            left[slots] = right[slots]
            strays += changed_bytes(left, right)
        return strays

    def fresh(self) -> Self:
        """With caches of its own."""
        return replace(self, k_cache=self.k_cache.clone(), v_cache=self.v_cache.clone())

    def with_special_rows(self) -> Self:
        """Only the projection: tables and lengths are no numbers to poison."""
        qkv = self.qkv_TO.clone()
        qkv[:1] = 0
        for row, value in ((1, float("nan")), (2, float("inf")), (3, 1e4)):
            qkv[row : row + 1, row] = value
        return replace(self, qkv_TO=qkv)

    def dispatch_class(self, rows: int) -> Any:
        """A token is a program of its own."""
        return None


@dataclass(frozen=True)
class Attention(QkvPost):
    """From the packed projection of a decode step to its attention output."""

    OP: ClassVar[str] = "attention"
    RUNG: ClassVar[str] = "attention"
    # The values of a head share their weights, and err together.
    ENOUGH_VALUES: ClassVar[int] = 4096

    def attention_arguments(self) -> tuple[Any, ...]:
        """Those of `decode_qkv_attention` but for `sliding_window` and `pdl`."""
        first = self.arguments()
        return (*first[:9], self.tables_TP, self.lens_T, *first[9:], self.heads[2] ** -0.5)

    def launch(self, how: How, pdl: bool = False, tile: Tile | None = None) -> Any:
        """Attention."""
        kernel: Callable[..., Any] = decode_qkv_attention_triton if how == "triton" else decode_qkv_attention_reference
        return kernel(*self.attention_arguments(), pdl=pdl)

    def launch_unfused(self, how: How) -> Any:
        """By qkv_post and the baseline's attention: what the rung adds to the other."""
        attend = paged_decode_attention_triton if how == "triton" else paged_decode_attention_reference
        q = super().launch(how)
        return attend(q, self.k_cache, self.v_cache, self.tables_TP, self.lens_T, self.heads[2] ** -0.5, None)

    def bound(self) -> float:
        """Roundings of result, probabilities and queries, 0.6 u each; the last move scores of deviation 1, or 2."""
        return 2.4 * unit_roundoff(self.dtype) + tolerance(torch.float32, sums=64) * 4

    def dispatch_class(self, rows: int) -> Any:
        """How the keys are cut up."""
        most = self.tables_TP.shape[1] * BLOCK_SIZE
        hopper = hopper_takes_decode(self.qkv_TO, self.k_cache, self.heads[0], None)
        n, m, d = self.heads
        return attention_cut(rows, n, m, d, most, BLOCK_SIZE, num_sms(self.qkv_TO), hopper)


def _context_len(row: int) -> int:
    """A padded row has none."""
    if row % ROWS_TO_LONG == ROWS_TO_LONG - 1:
        return LONG_CONTEXT
    return 0 if row % 7 == 6 else CONTEXTS[row % len(CONTEXTS)]


def _tables(lens: list[int]) -> tuple[Tensor, int]:
    """(block tables [T, P] of shuffled pages, their number); places that must not be read name the last page."""
    counts = [-(-length // BLOCK_SIZE) for length in lens]
    num_pages = sum(counts) + 1
    order = torch.randperm(num_pages - 1, generator=torch.Generator().manual_seed(1)).tolist()
    tables = torch.full((len(lens), -(-max(*CONTEXTS, *lens) // BLOCK_SIZE)), num_pages - 1, dtype=torch.int64)
    for t, count in enumerate(counts):
        for p in range(count):
            tables[t, p] = order.pop()
    return tables, num_pages


def _poison_unread(pool: Tensor, tables: Tensor, lens: list[int]) -> None:
    """NaN in every slot that is no old token's: the new one's, those behind it and all of the last page."""
    kept = torch.zeros(pool.shape[:2], dtype=torch.bool)
    for t, length in enumerate(lens):
        old = torch.arange(max(0, length - 1))
        kept[tables[t, old // BLOCK_SIZE], old % BLOCK_SIZE] = True
    pool[~kept.to(pool.device)] = float("nan")
