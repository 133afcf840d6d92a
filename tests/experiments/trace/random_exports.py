"""Exports full of what breaks readers, drawn at random: `write(export, seed)`."""

from random import Random

from tests.experiments.trace.exports import START_END, SyntheticExport

THREADS = [(1, 1), (1, 2), (2, 1)]
NAMES = ["cell/a", "phase/forward", "phase/sample", "layer/0", "layer/1", "op/norm", "op/linear", "another's", "step/7"]


def write(export: SyntheticExport, seed: int) -> None:
    """Several processes, threads, devices and streams; ranges nested in ranges of their own name, left open, or
    overlapping without nesting; correlation ids that repeat or are absent; graphs and clones; rows in no order."""
    rng = Random(seed)
    export.with_graph_trace()
    export.domain("library", 3)
    steps = sorted(rng.sample(range(0, 3000, 100), 20))
    rows = [(_step, (rng, export, number, at)) for number, at in enumerate(steps)]
    rows += [(_range, (rng, export)) for _ in range(rng.choice([0, 60]))]
    rows += [(_launch, (rng, export, correlation)) for correlation in range(80)]
    rows += [(_node, (rng, export, node)) for node in range(20)]
    if rng.random() < 0.3:
        rows.append((_replay, (rng, export)))
    rng.shuffle(rows)
    for insert, arguments in rows:
        insert(*arguments)


def _step(rng: Random, export: SyntheticExport, number: int, at: int) -> None:
    """A step on one thread, with ranges that nest in it."""
    thread = rng.choice(THREADS)
    export.range(f"step/{number}", at, at + 95, thread)
    depth = rng.randrange(1, 4)
    for level in range(1, depth + 1):
        registered = rng.random() < 0.5
        export.range(rng.choice(NAMES), at + level, at + 95 - rng.randrange(level, 60), thread, registered)


def _range(rng: Random, export: SyntheticExport) -> None:
    start = rng.randrange(3000)
    end = None if rng.random() < 0.05 else start + rng.choice([0, 3, 40, 900])
    style = {"style": START_END} if rng.random() < 0.1 else {}
    crossing = {"end_thread": rng.choice(THREADS)} if rng.random() < 0.1 else {}
    export.range(rng.choice(NAMES), start, end, rng.choice(THREADS), domain=rng.choice([0, 3]), **style, **crossing)


def _replay(rng: Random, export: SyntheticExport) -> None:
    start = rng.randrange(2000)
    export.range("replay", start, start + 1000, rng.choice(THREADS))


def _launch(rng: Random, export: SyntheticExport, correlation: int) -> None:
    """A call and what it launched: a kernel, the kernels of a graph, a copy, a set, a whole graph, or nothing."""
    start, thread = rng.randrange(3000), rng.choice(THREADS)
    if rng.random() < 0.9:
        export.call(correlation % 60, start, start + 3, thread)
    process = rng.choice([thread[0], thread[0], 1, 2, 3])
    where = {"deviceId": rng.randrange(2), "streamId": rng.randrange(3)}
    begin = start + rng.randrange(200)
    end = begin + rng.randrange(1, 300)
    found = correlation % 60 if rng.random() < 0.95 else None
    kind = rng.choice(["kernel", "kernel", "graph", "copy", "set", "whole graph", "nothing"])
    shape = {"gridX": rng.randrange(1, 4), "registersPerThread": 32}
    if kind == "kernel":
        export.kernel(rng.choice(["gemm", "norm"]), found, begin, end, process, **where, **shape)
    elif kind == "graph":
        for i in range(rng.randrange(1, 5)):
            export.kernel("gemm", found, begin + i, end + i, process, graphNodeId=rng.randrange(25), **where)
    elif kind == "copy":
        copied = {"copyKind": rng.choice([1, 2, 8]), **where}
        export.work("CUPTI_ACTIVITY_KIND_MEMCPY", found, begin, end, process, **copied)
    elif kind == "set":
        export.work("CUPTI_ACTIVITY_KIND_MEMSET", found, begin, end, process, **where)
    elif kind == "whole graph":
        export.work("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", found, begin, end, process, graphId=4, contextId=0, **where)


def _node(rng: Random, export: SyntheticExport, node: int) -> None:
    original = rng.randrange(20) if rng.random() < 0.4 else None
    export.node(node, rng.randrange(3000), original, rng.choice(THREADS))
