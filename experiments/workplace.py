"""What the workers of a run have in common, whether they are measured, traced or counted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.config import ExperimentConfig, VariantConfig
from experiments.messages import Load
from experiments.models import Model
from experiments.records import Point
from experiments.worker_process import PEER_COMMAND, WORKER_COMMAND


@dataclass(frozen=True)
class Workplace:
    """The experiment, its device and dtype resolved; the folder of the workers' logs; where their words go.

    `command` starts the worker of any variant; without one it is that of the variant's kind.
    """

    config: ExperimentConfig
    logs: Path
    say: Callable[[str], None]
    command: Sequence[str] | None = None

    def command_for(self, variant: VariantConfig) -> Sequence[str]:
        """What starts a variant's worker."""
        return self.command or ((*PEER_COMMAND, variant.kind) if variant.is_peer else WORKER_COMMAND)

    def load(self, model: Model, variant: VariantConfig, points: tuple[Point, ...]) -> Load:
        """What a worker is asked first."""
        config = self.config
        return Load(
            model=model.source,
            variant=variant,
            device=config.device,
            dtype=config.dtype,
            weights=config.weights,
            seed=config.seed,
            points=points,
            workloads=tuple(config.workloads),
            protocol=config.protocol,
        )
