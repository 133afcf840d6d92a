"""Decode steps of the fused engine at one cell, timed with any choice of tiles in place.

Weights are random and pages hold noise: a step costs the same. The engine is that of a decode cell, built once; each
time its graphs are captured anew, since a captured step keeps the choices that it was captured with.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from engine import Engine, EngineConfig, SamplingParams
from engine.config import ModelConfig
from engine.kernels._triton import num_sms
from engine.loading import LoadedModel, load_model_yaml
from engine.loading.hf_config import read_hf_config
from engine.loading.random import random_weights
from engine.sizes import table_widths
from experiments.floors import decode_work
from experiments.kernels.candidates import Problem
from experiments.kernels.case import How
from experiments.kernels.compiling import end_if_the_gpu_is_lost, run_all
from experiments.kernels.linear_cases import LinearCase
from experiments.kernels.measure import why_wrong
from experiments.kernels.step_choices import ATTENTION, Choice, step_points, trial_of
from experiments.kernels.tuning import KernelPoint
from experiments.measuring.decode import SETTLE_STEPS, run_window
from experiments.measuring.session import MAX_MODEL_LEN, free_memory
from variants import load_variant
from variants.dispatch import attention_pays, pays_here
from variants.kernels.attention_cut import attention_cut
from variants.kernels.decode_qkv_attention_sm90 import hopper_takes_decode
from variants.kernels.normed_product_sm90 import hopper_takes_product
from variants.kernels.tile_table import Trial, choose_tile, known_tile, trying
from variants.kernels.tiles import MAX_SKINNY_ROWS

WINDOWS, WINDOW_STEPS = 4, 25
STEPS = SETTLE_STEPS + WINDOWS * WINDOW_STEPS
# A first layer, one behind it, and the head: every kernel in every form that it has in the whole model.
COMPILING_LAYERS = 2
VARIANT = "fused"


@dataclass(frozen=True)
class StepPlace:
    """A decode cell: `batch` sequences with `context` tokens on average over the timed steps, so many layers."""

    model: str
    batch: int
    context: int
    layers: int
    dtype: str = "bfloat16"
    device: str = "cuda"


@dataclass(frozen=True)
class StepJob:
    """A choice to compile, at a cell with few layers."""

    place: StepPlace
    choice: Choice


class StepBench:
    """An engine at a place."""

    def __init__(self, place: StepPlace) -> None:
        self.place = place
        dtype: torch.dtype = getattr(torch, place.dtype)
        self.model = replace(model_config(place.model), num_layers=place.layers)
        # Centred, so that the mean context of the timed steps is the place's.
        self._first = max(1, place.context - STEPS // 2)
        tokens = self._first + 1 + STEPS
        config = EngineConfig(
            model=place.model,
            dtype=place.dtype,
            device=place.device,
            max_model_len=min(self.model.max_position_embeddings, max(MAX_MODEL_LEN, tokens)),
            max_num_seqs=place.batch,
            max_num_batched_tokens=place.batch,
            num_kv_blocks=place.batch * -(-tokens // EngineConfig.block_size),
            enable_prefix_caching=False,
        )
        weights = random_weights(self.model, dtype, place.device, config.seed)
        loaded = LoadedModel(self.model, weights, None, f"{place.model}, {place.layers} layers", "random")
        self.engine = Engine(config, load_variant(VARIANT), loaded)
        self.engine.runner.fill_with_noise(config.seed)
        widths = table_widths(config.max_model_len, config.block_size)
        needed = -(-tokens // config.block_size)
        self.max_context = config.block_size * min(width for width in widths if width >= needed)

    def time_us(self, trial: Trial) -> list[float]:
        """Wall microseconds of a step, one for each window."""
        with trying(trial):
            self.engine.runner.forget_graphs()
            # The last steps first: a longer block table is another graph, which must not be captured while timed.
            with self._decoding(STEPS - SETTLE_STEPS, SETTLE_STEPS):
                run_window(self.engine, SETTLE_STEPS)
            with self._decoding(0, STEPS):
                run_window(self.engine, SETTLE_STEPS)
                return [run_window(self.engine, WINDOW_STEPS)[0] * 1e3 / WINDOW_STEPS for _ in range(WINDOWS)]

    def run_once(self, trial: Trial) -> None:
        """Capture and run the first and the last of the steps that would be timed."""
        with trying(trial):
            self.engine.runner.forget_graphs()
            for after in (0, STEPS - SETTLE_STEPS):
                with self._decoding(after, SETTLE_STEPS):
                    run_window(self.engine, 1)

    @contextmanager
    def _decoding(self, after: int, steps: int) -> Iterator[None]:
        """The cell's sequences decode inside the block, from so many steps after their first on."""
        sampling = SamplingParams(max_tokens=steps, ignore_eos=True)
        tokens = [index % self.model.vocab_size for index in range(self._first + after + 1)]
        try:
            for _ in range(self.place.batch):
                self.engine.adopt(tokens, sampling)
            yield
        finally:
            self.engine.abort_all()


class GpuSteps:
    """`step_search.Steps` on the GPU at hand."""

    def __init__(self, place: StepPlace, sizes: Mapping[str, Any], ops: Sequence[str]) -> None:
        self.place, self._sizes = place, sizes
        self.points: Mapping[str, KernelPoint] = step_points(sizes, place.batch, ops)
        self.num_kv_heads = int(sizes["num_kv_heads"])
        # What the engine before this one held.
        free_memory(torch.device(place.device))
        self._bench = StepBench(place)
        self.max_context = self._bench.max_context
        self.sms = num_sms(torch.empty(0, device=place.device))
        self._dtype: torch.dtype = getattr(torch, place.dtype)
        cache = torch.empty(
            1,
            EngineConfig.block_size,
            self.num_kv_heads,
            int(sizes["head_dim"]),
            dtype=self._dtype,
            device=place.device,
        )
        self.hopper = hopper_takes_decode(cache, cache, int(sizes["num_heads"]), None)
        own = {site: self._own(site, point) for site, point in self.points.items()}
        self.own: Mapping[str, Choice] = {**own, ATTENTION: self._own_attention()}

    def problem(self, point: KernelPoint) -> Problem:
        """What the tiles of a point have to solve here."""
        return point.problem(self._dtype.itemsize, self.sms)

    def time_us(self, trial: Trial) -> list[float]:
        """Microseconds of a step, one for each window, its graph captured anew."""
        return self._bench.time_us(trial)

    def compile(self, choices: Sequence[Choice], ends_at: float) -> set[Choice]:
        """Those that compiled and ran by then, in worker processes that each have an engine of few layers."""
        few = replace(self.place, layers=min(self.place.layers, COMPILING_LAYERS))
        sizes = {**self._sizes, "num_layers": few.layers}
        weight_bytes = decode_work(sizes, [], self._dtype.itemsize).bytes
        # The embedding is looked up in, not read through.
        weight_bytes += self._sizes["vocab_size"] * self._sizes["hidden_size"] * self._dtype.itemsize
        done = run_all([StepJob(few, choice) for choice in choices], compile_one, int(weight_bytes), ends_at)
        return {job.choice for job in done}

    def why_wrong(self, choice: Choice) -> str:
        """What of the tile's results is out of bounds, in the form that the engine runs; attention is not checked."""
        if not choice.tile:
            return ""
        point, how = self.points[choice.site], self._how
        with torch.inference_mode():
            case: LinearCase = point.kind.draw(
                point.shape, point.rows, self._dtype, torch.device(self.place.device), plain=True
            )
            oracle = case.oracle()
            unfused_error = case.error(case.outputs(case.launch_unfused(how)), oracle)
            launched = case.launch(how, pdl=self._bench.engine.variant.runtime.pdl, tile=choice.tile)
            return why_wrong(case, case.outputs(launched), oracle, unfused_error)

    def _own(self, site: str, point: KernelPoint) -> Choice:
        """What the engine chooses there by itself."""
        (n, k), kind = point.shape, point.kind
        x = torch.empty(point.rows, k, dtype=self._dtype, device=self.place.device)
        # Of the weight only its shape counts.
        weight = torch.empty(n, k, device="meta")
        if not pays_here(kind.RUNG, x, weight):
            return Choice(site, point.key, False)
        if point.rows > MAX_SKINNY_ROWS and hopper_takes_product(x, weight) and not known_tile(point.op, x, weight):
            return Choice(site, point.key, True)
        return Choice(site, point.key, True, choose_tile(point.op, x, weight, kind.MATRICES, kind.CAN_SPLIT))

    def _own_attention(self) -> Choice:
        batch = self.place.batch
        if not attention_pays(batch, self.hopper):
            return Choice(ATTENTION, ATTENTION, False)
        num_heads, dim = int(self._sizes["num_heads"]), int(self._sizes["head_dim"])
        cut = attention_cut(
            batch, num_heads, self.num_kv_heads, dim, self.max_context, EngineConfig.block_size, self.sms, self.hopper
        )
        return Choice(ATTENTION, ATTENTION, True, cut=cut)

    @property
    def _how(self) -> How:
        return "triton" if self.place.device == "cuda" else "twin"


def model_config(model: str) -> ModelConfig:
    """A model's shape, by its name under configs/model or its folder."""
    folder = Path(model).expanduser()
    return read_hf_config(folder / "config.json") if folder.is_dir() else load_model_yaml(model)


def compile_one(job: StepJob) -> None:
    """What a worker does: the specialisations that a step launches are those that the timed step will."""
    try:
        _bench_of(job.place).run_once(trial_of([job.choice]))
    except Exception as error:
        end_if_the_gpu_is_lost(error)
        # Whatever the failed step has left behind.
        _bench_of.cache_clear()
        raise


@lru_cache(maxsize=1)
def _bench_of(place: StepPlace) -> StepBench:
    return StepBench(place)
