"""Whole steps and whole prefills of `fused`, timed with choices of the dispatcher in turns.

python -m experiments.kernels.trials points=[[1,66],[16,190]] choices=[attention:1x128-8-1,attention:hopper-1x3]
python -m experiments.kernels.trials models=[qwen3-8b] layers=8 points=[[16,1024]] choices=[qkv:held-16x16x1024-4-1]
python -m experiments.kernels.trials prefills=[512,2048] choices=[whole_heads:on,whole_heads:off,gate_up:off]

    models     names under configs/model, their weights drawn
    points     decode cells [batch, context]
    prefills   tokens of one prompt
    choices    each beside `own`, what the engine chooses by itself; `+` joins several changes
    layers     so many of the model, 0 for all
    rounds     how often all take turns, there and back
    out        where the record goes, as JSON

How a change is written is in trial_words.py. A choice that cannot run leaves its reason. Without a GPU the twins run:
their times choose nothing, and no ratio is shown.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Protocol

import torch

from engine import Engine, EngineConfig
from engine.loading import LoadedModel
from engine.loading.random import random_weights
from experiments.command_line import run_or_help
from experiments.durable import insist_on_place, write_figures
from experiments.environment import machine, resolve_device, resolve_dtype
from experiments.errors import UserError, first_line
from experiments.kernel_records import Stamp, new_stamp
from experiments.kernels.step_bench import STEPS, VARIANT, StepBench, StepPlace, model_config
from experiments.kernels.trial_words import trial_in_words
from experiments.measuring.prefill import first_token_ms
from experiments.measuring.presence import others_on_gpu
from experiments.measuring.session import free_memory
from experiments.models import Model, find_model
from experiments.options import parse_options
from variants import load_variant
from variants.kernels.tile_table import Trial, trying

OWN = "own"
# Before the clock; the first of them captures.
SETTLE_PREFILLS, PREFILLS = 2, 8


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    models: tuple[str, ...] = ("qwen3-0.6b",)
    points: tuple[tuple[int, ...], ...] = ()
    prefills: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()
    layers: int = 0
    rounds: int = 2
    out: str = ""


@dataclass(frozen=True)
class Place:
    """Where choices are compared: a decode step of `batch` sequences of `length` tokens, or a prefill of one."""

    model: str
    layers: int
    kind: str
    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.model}, {self.layers} layers, {self.kind} {self.batch} x {self.length:,}"


@dataclass
class Times:
    """Microseconds of each choice, a median for each round; the reason of each that could not run.

    `other_processes` were on the GPU when it was done; None: not known.
    """

    place: Place
    us: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    other_processes: int | None = None


class Bench(Protocol):
    """What a trial is timed on."""

    def time_us(self, trial: Trial) -> list[float]:
        """Microseconds, several times."""


class PrefillBench:
    """An engine for one prompt."""

    def __init__(self, place: Place, dtype: str, device: str) -> None:
        config = EngineConfig(
            model=place.model,
            dtype=dtype,
            device=device,
            max_model_len=place.length + 1,
            max_num_seqs=1,
            max_num_batched_tokens=place.length,
            num_kv_blocks=place.length // EngineConfig.block_size + 2,
            enable_prefix_caching=False,
        )
        model = replace(model_config(place.model), num_layers=place.layers)
        weights = random_weights(model, getattr(torch, dtype), device, config.seed)
        self._engine = Engine(config, load_variant(VARIANT), LoadedModel(model, weights, None, str(place), "random"))
        self._prompt = [index % model.vocab_size for index in range(place.length)]

    def time_us(self, trial: Trial) -> list[float]:
        """From the prompt's arrival to its first token, graphs captured anew."""
        with trying(trial):
            self._engine.runner.forget_graphs()
            try:
                times_ms = [first_token_ms(self._engine, [self._prompt]) for _ in range(SETTLE_PREFILLS + PREFILLS)]
            finally:
                self._engine.abort_all()
        return [1e3 * time_ms for time_ms in times_ms[SETTLE_PREFILLS:]]


def compare(bench: Bench, place: Place, trials: Mapping[str, Trial], rounds: int) -> Times:
    """Every trial once a round, there and back, so that drift favours none."""
    times = Times(place)
    for turn in range(rounds):
        for name, trial in list(trials.items())[:: 1 if turn % 2 == 0 else -1]:
            if name in times.failed:
                continue
            try:
                times.us.setdefault(name, []).append(median(bench.time_us(trial)))
            except Exception as error:
                # Registers, shared memory, the driver: each says so in its own way.
                times.failed[name] = f"{type(error).__name__}: {first_line(error)}"
                times.us.pop(name, None)
    return times


def parse(arguments: Sequence[str]) -> Options:
    """Options from the command line, checked but for the machine."""
    options = parse_options(Options, "trials", arguments)
    if not (options.points or options.prefills):
        raise UserError("trials: give points=[[BATCH,CONTEXT],...] or prefills=[TOKENS,...]")
    for point in options.points:
        if len(point) != 2 or min(point) < 1:
            raise UserError(f"trials: points=[[{','.join(map(str, point))}]] is no batch and its context")
    if min(options.prefills, default=1) < 1 or options.rounds < 1:
        raise UserError("trials: prefills and rounds must be at least 1")
    for source in options.models:
        model = find_model(source)
        if not model.sizes:
            raise UserError(f"models={source}: its sizes are not known without loading it; name one of configs/model")
        _check_positions(options, model)
        for words in options.choices:
            trial_in_words(words, model.sizes)
    return options


def _check_positions(options: Options, model: Model) -> None:
    lengths = [context + STEPS for _, context in options.points] + [tokens + 1 for tokens in options.prefills]
    if model.max_positions is not None and max(lengths) > model.max_positions:
        raise UserError(
            f"trials: {max(lengths):,} tokens, with those that are generated, do not fit {model.name}'s "
            f"{model.max_positions:,} positions"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; returns the exit code."""
    return run_or_help(argv, __doc__, lambda arguments: run(parse(arguments), arguments))


def run(options: Options, arguments: Sequence[str]) -> int:
    """Place after place, each printed and kept as soon as it is measured."""
    if options.out:
        insist_on_place(Path(options.out), "out")
    device = resolve_device("auto", machine())
    dtype = resolve_dtype("auto", device)
    stamp = new_stamp(shlex.join(["python", "-m", "experiments.kernels.trials", *arguments]), device)
    done = []
    for model in options.models:
        sizes = find_model(model).sizes
        trials = {OWN: Trial(), **{words: trial_in_words(words, sizes) for words in options.choices}}
        for place in places(options, model, int(sizes["num_layers"])):
            free_memory(torch.device(device))
            times = compare(_bench(place, dtype, device), place, trials, options.rounds)
            done.append(replace(times, other_processes=others_on_gpu(torch.device(device))))
            print(_told(done[-1], device), flush=True)
            if options.out:
                _write(Path(options.out), stamp, done)
    return 0


def places(options: Options, model: str, num_layers: int) -> list[Place]:
    """Decode cells, then prefills."""
    layers = min(options.layers or num_layers, num_layers)
    decodes = [Place(model, layers, "decode", batch, context) for batch, context in options.points]
    return [*decodes, *(Place(model, layers, "prefill", 1, tokens) for tokens in options.prefills)]


def _bench(place: Place, dtype: str, device: str) -> Bench:
    if place.kind == "prefill":
        return PrefillBench(place, dtype, device)
    return StepBench(StepPlace(place.model, place.batch, place.length, place.layers, dtype, device))


def _told(times: Times, device: str) -> str:
    us = {name: median(taken) for name, taken in times.us.items()}
    own_us = us.pop(OWN, float("nan"))
    twin = device == "cpu"
    lines = [f"{times.place}: own {own_us:,.1f} us{' (twins, which choose nothing)' if twin else ''}"]
    lines += [f"  {name}: {taken:,.1f} us{'' if twin else f', {own_us / taken:.3f}x'}" for name, taken in us.items()]
    lines += [f"  {name}: {reason}" for name, reason in times.failed.items()]
    if times.other_processes:
        lines.append(f"  other processes on the GPU: {times.other_processes}, so these times may be of a shared one")
    return "\n".join(lines)


def _write(path: Path, stamp: Stamp, done: Sequence[Times]) -> None:
    trials = [vars(times.place) | {k: v for k, v in vars(times).items() if k != "place"} for times in done]
    write_figures(path, stamp.figures | {"trials": trials})


if __name__ == "__main__":
    sys.exit(main())
