"""A model's weights as the forward pass wants them: packed projections, one object a layer.

Shape suffixes: V vocabulary, H hidden size, I intermediate size, D head dim, N and K a linear layer's output and input.
"""

from dataclasses import dataclass

from torch import Tensor

from engine.parallel.ranks import Columns, Ranks


@dataclass(frozen=True)
class Linear:
    """`y_TN = x_TK @ weight_NK.T + bias_N`, or one rank's part of it.

    Where the ranks of `sum_over` hold parts of K, y is the sum of their products; where `columns` is given, they hold
    parts of N, and all of y is wanted.
    """

    weight_NK: Tensor
    bias_N: Tensor | None = None
    sum_over: Ranks | None = None
    columns: Columns | None = None


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. `qkv` packs query, key, value rows in this order; `gate_up` packs gate, then up.

    A norm weight of None means ones: a variant's `prepare` has folded it into the linear layer that follows.
    """

    attn_norm_H: Tensor | None
    qkv: Linear
    q_norm_D: Tensor | None
    k_norm_D: Tensor | None
    o: Linear
    mlp_norm_H: Tensor | None
    gate_up: Linear
    down: Linear

    @property
    def num_weights(self) -> int:
        """Elements of its linear layers, or of one rank's part of them."""
        return sum(linear.weight_NK.numel() for linear in (self.qkv, self.o, self.gate_up, self.down))


@dataclass(frozen=True)
class ModelWeights:
    """All weights of a model; a tied `lm_head` shares its tensor with `embed_VH`."""

    embed_VH: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm_H: Tensor | None
    lm_head: Linear
