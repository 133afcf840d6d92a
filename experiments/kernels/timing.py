"""Time of one launch: many of them in a CUDA graph, replayed between two events, contenders taking turns.

A contender is a list of launches, one per copy of its weights. *Cold* rotates among copies that together are a multiple
of L2, so that each launch finds its weights in memory as a layer of a model does; *hot* launches one copy again and
again. Activations stay where the launch before left them in both.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import torch

Launch = Callable[[], object]
# Contenders' launches and a number of repeats to microseconds of one launch, a sample per repeat.
Timer = Callable[[Mapping[str, Sequence[Launch]], int], dict[str, list[float]]]

# Copies of weights together: L2 is no queue, and some lines outlive a pass that is only as large as it.
COLD_L2S = 3
DEFAULT_L2_BYTES = 64 * 2**20
# A replay lasts about this long, so that its two events (half a microsecond each) do not count.
SAMPLE_US = 4000.0
# Enough to tell which of many is worth a better look.
QUICK_SAMPLE_US = 1000.0
FEWEST_LAUNCHES, MOST_LAUNCHES = 10, 400


def l2_bytes(device: torch.device) -> int:
    """Size of the GPU's L2 cache; a guess where torch does not say."""
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or DEFAULT_L2_BYTES


def cold_copies(weight_bytes: int, l2: int) -> int:
    """Copies of a weight among which to rotate."""
    return max(1, -(-COLD_L2S * l2 // max(1, weight_bytes)))


def launches_of(copies: int, launch_us: float, sample_us: float = SAMPLE_US) -> int:
    """How many launches a graph holds: each copy as often as the others."""
    wanted = min(MOST_LAUNCHES, max(FEWEST_LAUNCHES, sample_us / max(launch_us, 1e-3)))
    return copies * max(1, round(wanted / copies))


def take_turns(runs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Samples of each run; in every repeat another one begins, so that none always follows the same."""
    names = list(runs)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        at = repeat % len(names)
        for name in names[at:] + names[:at]:
            samples[name].append(runs[name]())
    return samples


def time_on_gpu(
    contenders: Mapping[str, Sequence[Launch]], repeats: int, sample_us: float = SAMPLE_US
) -> dict[str, list[float]]:
    """`Timer` by CUDA graphs and events."""
    runs = {name: _captured(launches, sample_us) for name, launches in contenders.items()}
    for run in runs.values():
        run()
    return take_turns(runs, repeats)


def time_on_cpu(contenders: Mapping[str, Sequence[Launch]], repeats: int) -> dict[str, list[float]]:
    """`Timer` by the host's clock, one launch a sample: for twins, of which no speed is claimed."""
    return take_turns({name: _clocked(launches) for name, launches in contenders.items()}, repeats)


def time_quickly(contenders: Mapping[str, Sequence[Launch]], repeats: int) -> dict[str, list[float]]:
    """`time_on_gpu` with short samples."""
    return time_on_gpu(contenders, repeats, QUICK_SAMPLE_US)


def _captured(launches: Sequence[Launch], sample_us: float) -> Callable[[], float]:
    """Microseconds of one launch, by one replay of a graph that holds many."""
    for launch in launches:
        launch()  # compiled, tuned and allocated outside the capture
    count = launches_of(len(launches), _between_events(launches[0], ahead=launches[-1]), sample_us)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(count):
            launches[index % len(launches)]()
    # Replayed ahead, it leaves L2 as the timed replay will find it again.
    return lambda: _between_events(graph.replay, ahead=graph.replay) / count


def _between_events(run: Launch, ahead: Launch) -> float:
    """Microseconds of GPU time. `ahead` keeps the GPU busy while the host launches `run`: an idle one would pass the
    first event at once, and the time until the launch arrives would count."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    ahead()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def _clocked(launches: Sequence[Launch]) -> Callable[[], float]:
    launches[0]()

    def run() -> float:
        begin = time.perf_counter()
        launches[0]()
        return (time.perf_counter() - begin) * 1e6

    return run
