"""May two runs be compared at all? What must be alike for their times to mean the same, and what may have changed."""

from collections.abc import Callable, Iterator
from typing import Any

from experiments import plain
from experiments.manifest import Manifest, changes

# What one sample is. How many rounds there were, and how long they might take, changes only how sure one is.
_SAMPLING = ("windows", "steps_per_window", "window_ms", "warmup_min_steps", "warmup_max_steps")
# Which points a workload has decides what is compared, not what it means.
_PLACES = ("batches", "lengths", "points", "models")


def unlike(before: Manifest, after: Manifest) -> list[str]:
    """Why their times may not be compared, one phrase each: another GPU (or CPU), model, weights, dtype, protocol."""
    return list(_differ(_conditions, before, after))


def changed(before: Manifest, after: Manifest) -> list[str]:
    """What differs between the two and may well be what one wants to compare: code, software, variants."""
    code = ["the code that is timed differs"] if before.source_hash != after.source_hash else []
    return [*_differ(_subject, before, after), *code]


def _differ(describe: Callable[[Manifest], dict[str, Any]], before: Manifest, after: Manifest) -> Iterator[str]:
    """Changes in what is described, without the models, weights, workloads and variants that only one side has."""
    old, new = describe(before), describe(after)
    for key in old.keys() & {"model", "weights", "workload", "variant"}:
        shared = old[key].keys() & new[key].keys()
        old[key], new[key] = ({name: side[key][name] for name in shared} for side in (old, new))
    return changes(old, new)


def _conditions(run: Manifest) -> dict[str, Any]:
    protocol = plain.encode(run.config.protocol)
    return {
        "device": run.device,
        "gpu": run.gpu,
        "cpu": None if run.gpu else run.machine.get("cpu"),
        "dtype": run.dtype,
        "model": run.models,
        "weights": run.weights_hash,
        "protocol": {key: protocol[key] for key in _SAMPLING},
        "workload": {
            w.name: {key: value for key, value in plain.encode(w).items() if key not in _PLACES}
            for w in run.config.workloads
        },
    }


def _subject(run: Manifest) -> dict[str, Any]:
    return {
        "software": {**run.software, "driver": run.machine.get("driver")},
        "variant": {v.name: plain.encode(v) for v in run.config.variants},
    }
