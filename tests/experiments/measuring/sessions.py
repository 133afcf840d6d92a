"""Sessions over tiny models, as a worker would load them."""

from dataclasses import replace
from typing import Any

from engine import Engine
from engine.ops import Ops
from experiments.config import ProtocolConfig, VariantConfig, WorkloadConfig
from experiments.measuring.session import Session
from experiments.messages import Load
from experiments.records import Point
from tests.engine.replay import Replayed

PROTOCOL = ProtocolConfig(
    rounds=1, windows=2, steps_per_window=4, window_ms=200.0, warmup_min_steps=2, warmup_max_steps=6,
    verdict_tokens=48, load_timeout_s=60, cell_timeout_s=60,
)  # fmt: skip
WORKLOADS = (
    WorkloadConfig("decode", "decode", [2], [24]),
    WorkloadConfig("prefill", "prefill", [2], [24]),
    WorkloadConfig("offline", "offline", [3], [0], input_tokens=[3, 9], output_tokens=[2, 6]),
    WorkloadConfig("ragged", "decode", [8], [40], sigma=1.0),
    WorkloadConfig("shared_prefix", "shared_prefix", [3], [150], prefix_tokens=130),
    WorkloadConfig(
        "serving",
        "serving",
        [8],
        [0],
        rates=[400.0],
        input_tokens=[3, 9],
        output_tokens=[2, 6],
        max_num_seqs=2,
        ttft_slo_ms=1e6,
        itl_slo_ms=1e6,
    ),
)


def load(model: str = "tiny", variant: str = "baseline", **changes: Any) -> Load:
    """A request to load a model on the CPU in fp32."""
    defaults: dict[str, Any] = {
        "device": "cpu", "dtype": "float32", "weights": "random", "seed": 0,
        "points": (Point(model, "decode", 2, 24),), "workloads": WORKLOADS, "protocol": PROTOCOL,
    }  # fmt: skip
    return Load(model, VariantConfig(variant, variant), **{**defaults, **changes})


def session_of(model: str = "tiny", variant: str = "baseline", ops: Ops | None = None, **changes: Any) -> Session:
    """A loaded session; `ops` takes the place of the variant's own."""
    session = Session(load(model, variant, **changes))
    if ops is not None:
        session.variant = replace(session.variant, ops=ops)
    return session


def with_graphs(session: Session) -> Session:
    """The session, its engines replaying their steps as on a GPU."""
    make = session.engine

    def engine(*args: Any, **kwargs: Any) -> Engine:
        made = make(*args, **kwargs)
        made.runner.graphs = Replayed(enabled=True)
        return made

    session.engine = engine  # type: ignore[method-assign]
    return session
