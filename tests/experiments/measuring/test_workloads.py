"""What is timed: the right steps at the right contexts, over the right requests, and nothing that ended early."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from engine import Engine
from engine.graphs import Graph, GraphKey, Step
from engine.inputs import Layout
from engine.request import RequestOutput
from engine.runner import Runner
from experiments.config import WorkloadConfig
from experiments.lengths import request_lengths
from experiments.measuring import decode, offline, prefill
from experiments.measuring.decode import decode_engine, decoding, measure_decode, window_steps
from experiments.measuring.guard import Disturbances, Disturbed, undisturbed
from experiments.measuring.offline import draw_requests, measure_offline
from experiments.measuring.prefill import first_token_and_launch_ms, first_token_ms, measure_prefill
from experiments.records import Point
from tests.engine.replay import Replayed
from tests.experiments.measuring.sessions import PROTOCOL, session_of, with_graphs

DECODE, PREFILL, OFFLINE = (Point("tiny", kind, batch, length) for kind, batch, length in (
    ("decode", 2, 24), ("prefill", 2, 24), ("offline", 3, 0),
))  # fmt: skip


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The context lengths of each timed window's steps, as they run."""
    windows: list[list[int]] = []
    run = decode.run_window

    def recorded(engine: Engine, steps: int) -> Any:
        launch = engine.runner.launch
        seen: list[int] = []

        def launched(decodes: Any, prefills: Any) -> Any:
            assert not prefills
            assert len(decodes) == 2
            seen.append(decodes[0].start)
            return launch(decodes, prefills)

        monkeypatch.setattr(engine.runner, "launch", launched)
        result = run(engine, steps)
        monkeypatch.setattr(engine.runner, "launch", launch)
        windows.append(seen)
        return result

    monkeypatch.setattr(decode, "run_window", recorded)
    return windows


def timed(contexts: list[list[int]]) -> list[list[int]]:
    """The windows whose time counts: before each the engine settles."""
    return contexts[-2 * PROTOCOL.windows :][1::2]


@pytest.mark.parametrize(("length", "steps"), [(100, 4), (24, 4), (6, 4), (5, 3), (4, 1)])
def test_every_decode_window_is_centred_on_the_context(length: int, steps: int, contexts: list[list[int]]) -> None:
    """The mean context of each is the cell's, to half a step; every step decodes every sequence."""
    samples, engine = measure_decode(session_of(), replace(DECODE, length=length), PROTOCOL)
    first, *others = timed(contexts)
    assert first == list(range(first[0], first[0] + steps))
    assert abs(sum(first) / steps - length) <= 0.5
    assert others == [first] * (PROTOCOL.windows - 1), "windows of which the middle one need not be the median"
    assert len(samples["step_ms"]) == PROTOCOL.windows
    assert all(value > 0 for value in samples["step_ms"])
    assert set(samples) == {"step_ms"}, "device times need a device"
    assert not engine.has_work


def test_a_context_that_leaves_no_room_to_settle_is_timed_a_little_later(contexts: list[list[int]]) -> None:
    measure_decode(session_of(), replace(DECODE, length=1), PROTOCOL)
    assert timed(contexts) == [[1 + decode.SETTLE_STEPS]] * PROTOCOL.windows


def test_decode_at_the_last_position_is_moved_back(contexts: list[list[int]]) -> None:
    """A context of all positions a model has: the steps end there, and none is lost."""
    session = session_of("tiny-llama")
    measure_decode(session, Point("tiny-llama", "decode", 2, 2048), PROTOCOL)
    # The last token computed is at position 2046: what it predicts is the last that the model has a position for.
    assert timed(contexts) == [[2043, 2044, 2045, 2046]] * PROTOCOL.windows


def test_a_longer_block_table_is_met_before_the_clock_runs() -> None:
    """Contexts from 294 to 325 tokens: beyond 320, which steps of the warm-up never reach, is another graph."""
    session = with_graphs(session_of())
    samples, engine = measure_decode(
        session, replace(DECODE, length=310), replace(PROTOCOL, steps_per_window=32, window_ms=1e6)
    )
    assert len(samples["step_ms"]) == PROTOCOL.windows
    assert {key.layout.table_width * engine.config.block_size for key in engine.runner.graphs.graphs} == {320, 1280}


def test_ragged_contexts_step_together_and_average_to_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sequence at its own context, moved alike; the last page of each fits the pool, and nobody is preempted."""
    session = session_of()
    point = Point("tiny", "ragged", 8, 40)
    wanted = session.contexts(point)
    starts: list[list[int]] = []
    launch = Runner.launch

    def launched(runner: Runner, decodes: Any, prefills: Any) -> Any:
        starts.append([item.start for item in decodes])
        return launch(runner, decodes, prefills)

    monkeypatch.setattr(Runner, "launch", launched)
    _, engine = measure_decode(session, point, PROTOCOL)
    assert len(set(wanted)) > 4
    window = starts[-PROTOCOL.steps_per_window :]
    for sequence, context in enumerate(wanted):
        assert [step[sequence] for step in window] == [context - 2, context - 1, context, context + 1]
    assert engine.scheduler.num_preemptions == 0


def test_windows_of_ragged_contexts_are_as_short_as_the_shortest_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would start later than the others, and its context be off."""
    session, starts = session_of(), []
    monkeypatch.setattr(session, "contexts", lambda point: [40, 5])
    launch = Runner.launch

    def launched(runner: Runner, decodes: Any, prefills: Any) -> Any:
        starts.append([item.start for item in decodes])
        return launch(runner, decodes, prefills)

    monkeypatch.setattr(Runner, "launch", launched)
    samples, _ = measure_decode(session, DECODE, PROTOCOL)
    assert starts[-3:] == [[39, 4], [40, 5], [41, 6]]
    assert len(samples["step_ms"]) == PROTOCOL.windows


def test_a_window_of_many_steps_has_its_pages(contexts: list[list[int]]) -> None:
    """Far more of them than the warm-up has: a sequence without room would be preempted while timed."""
    protocol = replace(PROTOCOL, steps_per_window=120, window_ms=1e9)
    _, engine = measure_decode(session_of(), replace(DECODE, length=200), protocol)
    assert timed(contexts) == [list(range(140, 260))] * PROTOCOL.windows
    assert engine.scheduler.num_preemptions == 0
    assert engine.config.max_num_seqs == 2


def clocked(module: Any, monkeypatch: pytest.MonkeyPatch, engine: Engine, *readings_s: float) -> list[str]:
    """What the engine, the GPU and a clock with these readings are asked for, in order."""
    events: list[str] = []
    left, step = iter(readings_s), engine.step

    def reading_s() -> float:
        events.append("clock")
        return next(left)

    def stepped() -> list[RequestOutput]:
        events.append("step")
        return step()

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=reading_s))
    monkeypatch.setattr(engine, "step", stepped)
    if hasattr(module, "synchronize"):
        monkeypatch.setattr(module, "synchronize", lambda engine: events.append("synchronize"))
    return events


def test_a_window_s_clock_runs_from_an_idle_gpu_to_an_idle_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over its steps and nothing else."""
    session = session_of()
    engine = decode_engine(session, [24, 24], 9)
    with decoding(session, engine, DECODE, [24, 24], 9):
        events = clocked(decode, monkeypatch, engine, 100.0, 100.25)
        assert decode.run_window(engine, 3) == (250.0, [])
        assert events == ["synchronize", "clock", "step", "step", "step", "synchronize", "clock"]


def test_a_prefill_s_clock_runs_from_an_idle_gpu_to_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = session_of().engine(1, 30, 10)
    events = clocked(prefill, monkeypatch, engine, 100.0, 100.125, 100.25)
    assert first_token_and_launch_ms(engine, [[1] * 20]) == (250.0, 125.0)
    assert events == ["synchronize", "clock", "step", "clock", *["step"] * (len(events) - 5), "clock"]
    assert not engine.has_work


def test_an_offline_run_s_clock_runs_over_all_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, requests = offline.prepare(session_of(), OFFLINE)
    events = clocked(offline, monkeypatch, engine, 100.0, 100.25)
    assert offline.run(engine, requests) == 0.25
    assert events == ["clock", *["step"] * (len(events) - 2), "clock"]
    assert not engine.has_work


def test_an_offline_engine_has_the_pages_of_what_was_drawn() -> None:
    """All requests at once, and no more: other engines' caches lie beside it."""
    session = session_of()
    session.workloads["offline"] = replace(session.workloads["offline"], input_tokens=[60, 70], output_tokens=[60, 70])
    engine, requests = offline.prepare(session, OFFLINE)
    sizes = [len(prompt) + sampling.max_tokens for prompt, sampling in requests]
    assert len(engine.blocks.blocks) == sum(map(engine.blocks.blocks_for, sizes)) > len(requests)


def test_a_window_s_time_is_shared_by_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host time in equal parts, the device's as it was read."""
    monkeypatch.setattr(decode, "run_window", lambda engine, steps: (10.0 * steps, [3.0] * (steps - 1)))
    samples, _ = measure_decode(session_of(), DECODE, PROTOCOL)
    assert samples == {"step_ms": [10.0] * 2, "step_device_ms": [3.0] * 3 * 2}


def test_a_window_holds_as_many_steps_as_its_time() -> None:
    """One at least, and no more than are asked for."""
    protocol = replace(PROTOCOL, steps_per_window=100, window_ms=200.0)
    assert [window_steps(protocol, step_ms) for step_ms in (0.0, 1.0, 2.0, 7.0, 200.0, 900.0)] == [
        100,
        100,
        100,
        28,
        1,
        1,
    ]


def test_a_larger_cell_never_has_a_smaller_pool() -> None:
    """What lets an out-of-memory be inferred; drawn lengths must not undo it."""
    session = session_of()

    def pages(batch: int, length: int) -> int:
        contexts = session.contexts(Point("tiny", "ragged", batch, length))
        return len(decode_engine(session, contexts, 5).blocks.blocks)

    sizes = {(batch, length): pages(batch, length) for batch in (2, 3, 4, 9) for length in (40, 41, 65, 200)}
    for (batch, length), size in sizes.items():
        assert all(size <= other for (b, n), other in sizes.items() if b >= batch and n >= length)


def test_slow_steps_make_short_windows(contexts: list[list[int]]) -> None:
    """One step at least, whatever a window's milliseconds say."""
    samples, _ = measure_decode(session_of(), DECODE, replace(PROTOCOL, window_ms=0.0))
    assert [len(window) for window in timed(contexts)] == [1, 1]
    assert len(samples["step_ms"]) == 2


def test_steps_that_do_nothing_are_an_error() -> None:
    """Sequences that have ended take no time at all: that must never be a sample."""
    session = session_of()
    engine = decode_engine(session, [24, 24], 3)
    with decoding(session, engine, DECODE, [24, 24], 3), pytest.raises(RuntimeError, match="ended after 3 of 90 steps"):
        decode.run_window(engine, 90)


def test_noise_fills_every_page_and_reproduces() -> None:
    """Values of the size that keys and values have, the same for every variant."""
    engines = [session_of("tiny", variant).engine(2, 100, 2) for variant in ("baseline", "folded")]
    for engine in engines:
        engine.runner.fill_with_noise(seed=3)
    for first, second in zip(engines[0].runner.caches, engines[1].runner.caches, strict=True):
        assert first.k.equal(second.k)
        assert not first.k.equal(first.v)
        assert 0.9 < float(first.k.std()) < 1.1


def test_a_disturbed_window_is_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture in the second window."""
    run = decode.run_window
    calls = {"left": 4}

    def disturbing(engine: Engine, steps: int) -> Any:
        calls["left"] -= steps == PROTOCOL.steps_per_window
        engine.runner.graphs.num_captures += calls["left"] == 2
        return run(engine, steps)

    monkeypatch.setattr(decode, "run_window", disturbing)
    with pytest.raises(Disturbed, match="graph captures"):
        measure_decode(session_of(), DECODE, PROTOCOL)


def test_prefill_times_fresh_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many samples as windows times repeats, each with prompts of its own; every prompt gives its first token."""
    served: list[list[list[int]]] = []

    def recorded(engine: Engine, prompts: list[list[int]]) -> tuple[float, float]:
        served.append(prompts)
        return first_token_and_launch_ms(engine, prompts)

    monkeypatch.setattr(prefill, "first_token_and_launch_ms", recorded)
    samples, engine = measure_prefill(session_of(), PREFILL, replace(PROTOCOL, window_ms=1e9))
    count = PROTOCOL.windows * PROTOCOL.steps_per_window
    # On a CPU the step is over when it is launched.
    assert {name: len(taken) for name, taken in samples.items()} == {"ttft_ms": count}
    timed = served[-count:]
    assert len({str(prompts) for prompts in [served[0], *timed]}) == 1 + count, "nor those that it settled with"
    assert all([len(prompt) for prompt in prompts] == [24, 24] for prompts in timed)
    assert engine.metrics.num_generated_tokens == 2 * len(served)
    assert engine.metrics.num_prefilled_tokens == 48 * len(served)
    assert engine.metrics.num_steps == len(served), "prompts within the budget of a step came in chunks"


def test_between_the_prompts_of_a_window_nothing_else_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn before it; the GPU's state and what must not happen are read around it."""
    done: list[str] = []
    session = session_of()
    draw = session.prompts

    @contextmanager
    def window(engine: Engine) -> Iterator[None]:
        done.append("(")
        yield
        done.append(")")

    def served(engine: Engine, prompts: list[list[int]]) -> tuple[float, float]:
        done.append("serve")
        return 1e-3, 1e-3

    monkeypatch.setattr(session, "prompts", lambda *args: [done.append("draw"), draw(*args)][1])
    monkeypatch.setattr(prefill, "first_token_and_launch_ms", served)
    monkeypatch.setattr(prefill, "undisturbed", window)
    measure_prefill(session, PREFILL, PROTOCOL)
    repeats = PROTOCOL.steps_per_window
    whole = ["draw"] * repeats + ["("] + ["serve"] * repeats + [")"]
    assert done[-len(whole) * PROTOCOL.windows :] == whole * PROTOCOL.windows


def test_what_the_host_needs_before_it_waits_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the first step is launched, not until its token is there."""
    engine = session_of().engine(1, 30, 30)
    step, delays_s = engine.step, iter([0.01, 0.2])

    def slow_step() -> list[RequestOutput]:
        outputs = step()
        time.sleep(next(delays_s))
        return outputs

    monkeypatch.setattr(engine, "step", slow_step)
    ttft_ms, launch_ms = first_token_and_launch_ms(engine, [[1] * 20])
    assert 10 <= launch_ms < 200 <= ttft_ms - launch_ms
    monkeypatch.setattr(prefill, "first_token_and_launch_ms", lambda engine, prompts: (7.0, 3.0))
    assert first_token_ms(engine, [[1] * 20]) == 7.0


@pytest.mark.gpu
def test_on_a_gpu_the_launch_of_a_prefill_has_its_own_samples() -> None:
    """One for each first token, shorter than it."""
    samples, _ = measure_prefill(session_of(device="cuda"), PREFILL, PROTOCOL)
    assert len(samples["ttft_launch_ms"]) == len(samples["ttft_ms"])
    assert all(0 < launch < whole for launch, whole in zip(samples["ttft_launch_ms"], samples["ttft_ms"], strict=True))


def test_prefill_that_fails_is_an_error() -> None:
    """A prompt past the model's positions."""
    engine = session_of().engine(1, 30, 30)
    with pytest.raises(RuntimeError, match="exceed max_model_len=4096"):
        first_token_ms(engine, [[1] * 4096])


def test_offline_draws_are_nano_vllm_s() -> None:
    """Greedy, none ended by its tokens, of the lengths that the floor is computed from."""
    workload = WorkloadConfig("offline", "offline", [16], [0], input_tokens=[100, 1024], output_tokens=[100, 1024])
    requests = draw_requests(16, workload, vocab_size=151_936)
    lengths = [(len(prompt), sampling.max_tokens) for prompt, sampling in requests]
    assert lengths == list(request_lengths(16, (100, 1024), (100, 1024)))
    assert all(sampling.greedy and sampling.ignore_eos for _, sampling in requests)
    assert max(token for prompt, _ in requests for token in prompt) <= 10_000


def test_offline_draws_fit_a_small_vocabulary() -> None:
    """The lengths stay what they are."""
    workload = WorkloadConfig("offline", "offline", [5], [0], input_tokens=[3, 50], output_tokens=[2, 6])
    requests = draw_requests(5, workload, vocab_size=17)
    assert all(0 <= token < 17 for prompt, _ in requests for token in prompt)
    assert [len(p) for p, _ in requests] == [len(p) for p, _ in draw_requests(5, workload, vocab_size=151_936)]


def test_offline_counts_every_output_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens over seconds of the run, after the beginning of one as a warm-up."""
    seconds = iter([0.5])
    run = offline.run

    def timed(engine: Engine, requests: Any) -> float:
        run(engine, requests)
        return next(seconds)

    monkeypatch.setattr(offline, "run", timed)
    session = session_of()
    samples, engine = measure_offline(session, OFFLINE, PROTOCOL)
    requests = draw_requests(3, session.workloads["offline"], 256)
    total = sum(sampling.max_tokens for _, sampling in requests)
    assert samples == {"output_tokens_per_s": [total / 0.5]}
    assert engine.metrics.num_prefilled_tokens == 2 * sum(len(prompt) for prompt, _ in requests)
    assert total <= engine.metrics.num_generated_tokens < 2 * total
    engine.check_integrity()
    assert not engine.has_work


def test_an_offline_warm_up_has_every_step_of_a_run_that_no_graph_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same sizes in the same order, though its answers are cut off with the last prompt."""
    monkeypatch.setattr(offline, "MAX_BATCHED_TOKENS", 8)
    mixed_step = Runner._prompt_step
    seen: list[tuple[int, int, int]] = []

    def step(runner: Runner, layout: Layout, *rest: Any) -> Any:
        seen.append((layout.num_tokens, layout.num_seqs, layout.num_decode))
        return mixed_step(runner, layout, *rest)

    monkeypatch.setattr(Runner, "_prompt_step", step)
    session = session_of()
    requests = draw_requests(3, session.workloads["offline"], 256)
    engine = session.engine(3, 20, 8)
    offline.begin(engine, requests)
    begun = list(seen)
    steps = engine.metrics.num_steps
    seen.clear()
    offline.run(engine, requests)
    assert begun == seen
    assert len(begun) > 2
    assert steps < engine.metrics.num_steps - steps


class CachedMemory:
    """What PyTorch's allocator does: steps without a graph keep their memory; a capture gives all of it back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocations = self.cached_tokens = 0
        mixed_step, capture = Runner._prompt_step, Replayed.capture

        def step(runner: Runner, layout: Layout, *rest: Any) -> Any:
            if layout.num_tokens > self.cached_tokens:
                self.allocations, self.cached_tokens = self.allocations + 1, layout.num_tokens
            return mixed_step(runner, layout, *rest)

        def captured(graphs: Replayed, key: GraphKey, step: Step) -> Graph:
            self.cached_tokens = 0
            return capture(graphs, key, step)

        def now(engine: Engine) -> Disturbances:
            return Disturbances(0, 0, engine.runner.graphs.num_captures, self.allocations)

        monkeypatch.setattr(Runner, "_prompt_step", step)
        monkeypatch.setattr(Replayed, "capture", captured)
        monkeypatch.setattr(Disturbances, "now", now)


def test_a_run_s_memory_is_cached_before_the_clock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers end one by one, so that a run alone captures its last graph long after its largest steps."""
    memory = CachedMemory(monkeypatch)
    monkeypatch.setattr(offline, "MAX_BATCHED_TOKENS", 8)
    session = with_graphs(session_of())
    requests = draw_requests(3, session.workloads["offline"], 256)
    engine = session.engine(3, 20, 8)
    offline.run(engine, requests)
    with pytest.raises(Disturbed, match="driver allocations"), undisturbed(engine):
        offline.run(engine, requests)
    assert memory.allocations > 0

    _, engine = measure_offline(session, OFFLINE, PROTOCOL)
    total = sum(sampling.max_tokens for _, sampling in requests)
    assert engine.runner.graphs.fallbacks["prefill chunks and decodes in one step"] > 0
    assert total <= engine.metrics.num_generated_tokens < 2 * total, "the beginning to warm up, one run to be timed"


@pytest.mark.gpu
def test_on_a_gpu_a_second_offline_cell_takes_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its beginning to warm up, and one that asks the driver for nothing; the first cell compiles."""
    monkeypatch.setattr(offline, "MAX_BATCHED_TOKENS", 64)
    session = session_of(device="cuda", dtype="bfloat16")
    point = replace(OFFLINE, batch=40)
    for _ in range(2):
        _, engine = measure_offline(session, point, PROTOCOL)
        assert engine.runner.graphs.fallbacks["prefill chunks and decodes in one step"] > 0
    total = sum(sampling.max_tokens for _, sampling in draw_requests(40, session.workloads["offline"], 256))
    assert total <= engine.metrics.num_generated_tokens < 2 * total


def test_an_offline_run_that_met_something_new_was_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time does not count."""
    taken_s = iter([7.0, 0.5])
    run = offline.run

    def timed(engine: Engine, requests: Any) -> float:
        run(engine, requests)
        seconds = next(taken_s)
        engine.runner.graphs.num_captures += seconds == 7.0
        return seconds

    monkeypatch.setattr(offline, "run", timed)
    session = session_of()
    samples, _ = measure_offline(session, OFFLINE, PROTOCOL)
    total = sum(sampling.max_tokens for _, sampling in draw_requests(3, session.workloads["offline"], 256))
    assert samples == {"output_tokens_per_s": [total / 0.5]}


def test_an_offline_request_that_ends_early_is_an_error() -> None:
    """Its missing tokens would have been counted."""
    session = session_of()
    engine = session.engine(2, 20, 40)
    workload = WorkloadConfig("offline", "offline", [2], [0], input_tokens=[5, 5], output_tokens=[4500, 4500])
    with pytest.raises(RuntimeError, match=r"request 0 ended early: .* exceed max_model_len"):
        offline.run(engine, draw_requests(2, workload, 256))
