"""A variant: a value that says how an engine differs from the baseline, and nothing else.

The places to differ are `ops` (primitive ops, regions, the layer: whatever methods of `Ops` it overrides), `prompt_ops`
(the same for steps with prompts in them), `prepare` (weights as its kernels want them) and `runtime` (graphs, compile,
PDL).
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine.config import ModelConfig
from engine.ops import Ops
from engine.weights import ModelWeights

Prepare = Callable[[ModelWeights, ModelConfig], ModelWeights]


@dataclass(frozen=True)
class Runtime:
    """How the forward pass is launched. `pdl` is programmatic dependent launch, for kernels that support it."""

    cuda_graphs: bool = True
    compile: bool = False
    pdl: bool = False


def keep(weights: ModelWeights, config: ModelConfig) -> ModelWeights:
    """The identity `prepare`."""
    return weights


@dataclass(frozen=True)
class Variant:
    """One way to run a model. `switches` are the rungs of its ladder, as given in its YAML, for the record.

    `kernels` names for each rung (a switch, or what the variant does unasked) the kernel that proves it in a trace; `*`
    stands for anything. `prompt_ops` runs the steps with prompts in them; None: `ops` does.
    """

    name: str
    ops: Ops = field(default_factory=Ops)
    prepare: Prepare = keep
    runtime: Runtime = Runtime()
    switches: Mapping[str, bool] = field(default_factory=dict)
    kernels: Mapping[str, str] = field(default_factory=dict)
    prompt_ops: Ops | None = None

    @property
    def replaced(self) -> tuple[str, ...]:
        """Names of the baseline's methods that this variant overrides, sorted."""
        known = {name: method for name, method in inspect.getmembers(Ops, inspect.isfunction) if name[:2] != "__"}
        kinds = {type(self.ops), type(self.prompt_ops or self.ops)}
        return tuple(name for name, own in known.items() if any(getattr(kind, name) is not own for kind in kinds))


BASELINE = Variant("baseline")
