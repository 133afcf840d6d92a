"""Every kernel of the engine and of `fused`, small: what compute-sanitizer watches (experiments/sanitize.py).

python -m experiments.kernels.launched [--brief] SECTION FILE

A section is a fused kernel's op, in all of its forms, on every path of its main loop, beside what it replaces;
`prefill`, attention by both of the engine's kernels; `engine`, two layers of a model that `fused` and the baseline
answer prompts with, short and long, in CUDA graphs (brief: short ones, without graphs); or `controls` and `planted`,
kernels that do not race and that do (sanitizer_controls.py). FILE gets how often each Triton or Gluon kernel was
launched (one in a graph: when it was captured).
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from engine import Engine, EngineConfig, SamplingParams
from engine.kernels._triton import triton
from engine.kernels.prefill_attention import varlen_prefill_attention_triton
from engine.kernels.prefill_attention_sm90 import hopper_takes_prefill, varlen_prefill_attention_sm90
from engine.loading import LoadedModel
from engine.loading.model_yaml import load_model_yaml
from engine.loading.random import random_weights
from experiments.kernel_records import PLANTED
from experiments.kernels.case import Shape
from experiments.kernels.cases import CASES, forms
from experiments.kernels.figures import randn
from experiments.kernels.sanitizer_controls import launch_controls
from variants import load_variant

PREFILL, ENGINE, CONTROLS = "prefill", "engine", "controls"
SECTIONS = (*CASES, PREFILL, ENGINE, CONTROLS, PLANTED)
# A gemv of one row and of two, held and skinny products, and wide ones by TMA: of one tile of rows, and of two.
ROWS = (1, 2, 7, 40, 100, 130)
# One sequence, and the ways to cut keys up that more rows meet, with long contexts from nine rows on.
ATTENTION_ROWS = (1, 7, 10, 100)
# Small enough for one block of K, and so large that every path loops. Hopper's own products of many rows take only the
# second, which are of whole 16-byte units.
SHAPES: dict[str, tuple[Shape, ...]] = {
    "norm_linear": ((75, 136), (96, 2200)),
    "linear_add": ((75, 1104), (96, 2200)),
    "gate_up_silu": ((150, 136), (192, 2200)),
    "lm_head": ((150, 136), (304, 2200)),
    "qkv_post": ((9, 3, 64), (12, 4, 96)),
    "attention": ((9, 3, 64), (12, 4, 96), (16, 8, 128)),
}
# Queries and the keys before them, around the edges of a tile of 128 queries and of a page.
QUERIES, EARLIER, PAGE = (1, 64, 130, 200), (0, 5, 64, 700), 64
# The longest goes through Hopper's own prefill attention.
PROMPTS, NEW_TOKENS = (5, 70, 1100), 4


def launch(section: str, device: torch.device, brief: bool = False) -> None:
    """Launch everything of a section."""
    with torch.inference_mode():
        if section in (CONTROLS, PLANTED):
            launch_controls(device, section == PLANTED)
        elif section == ENGINE:
            answer_prompts(device, brief)
        elif section == PREFILL:
            for dim in (64, 128):
                attend(dim, device)
        else:
            for shape in SHAPES[section]:
                launch_op(section, shape, ATTENTION_ROWS if section == "attention" else ROWS, device)


def launch_op(op: str, shape: Shape, rows: Sequence[int], device: torch.device) -> None:
    """A fused kernel in its forms, and once what it replaces; inputs have gaps between rows, and a bias."""
    kinds = list(forms(op).values())
    for kind, count in product(kinds, rows):
        case = kind.draw(shape, count, torch.bfloat16, device)
        # Twice: the second is a dependent launch behind the first.
        case.fresh().launch("triton", pdl=True)
        case.fresh().launch("triton", pdl=True)
    kinds[-1].draw(shape, max(rows), torch.bfloat16, device).launch_unfused("triton")


def attend(dim: int, device: torch.device) -> None:
    """Prefill attention by every kernel that takes it, 4 query heads on 2 key heads."""
    lens = [q + k for q, k in zip(QUERIES, EARLIER, strict=True)]
    pages = [-(-length // PAGE) for length in lens]
    firsts = torch.tensor([0, *pages]).cumsum(0)[:-1]
    tables = (firsts[:, None] + torch.arange(max(pages))).clamp(max=sum(pages) - 1)
    q, k, v = (
        randn(*size, dtype=torch.bfloat16, seed=seed, device=device)
        for seed, size in enumerate(((sum(QUERIES), 4, dim), *[(sum(pages), PAGE, 2, dim)] * 2))
    )
    tables, context_lens, starts = (
        x.to(device, torch.int32) for x in (tables, torch.tensor(lens), torch.tensor([0, *QUERIES]).cumsum(0))
    )
    kernels: list[Callable[..., Any]] = [varlen_prefill_attention_triton]
    kernels += [varlen_prefill_attention_sm90] if hopper_takes_prefill(q, k, v, None) else []
    for kernel in kernels:
        kernel(q, k, v, tables, context_lens, starts, max(QUERIES), dim**-0.5)


def answer_prompts(device: torch.device, brief: bool = False) -> None:
    """Two layers of qwen3-0.6b and few words, drawn. What is brief is so for tools that watch every shared access."""
    config = replace(load_model_yaml("qwen3-0.6b"), num_layers=2, vocab_size=1024)
    weights = random_weights(config, torch.bfloat16, device, seed=0)
    sizes = EngineConfig(
        "qwen3-0.6b", device=str(device), max_model_len=2048, max_num_seqs=4, max_num_batched_tokens=2048,
        num_kv_blocks=64,
    )  # fmt: skip
    sampling = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    prompts = [[(7 * i) % config.vocab_size for i in range(length)] for length in PROMPTS[: 2 if brief else None]]
    for name in ("baseline", "fused"):
        variant = load_variant(name)
        variant = replace(variant, runtime=replace(variant.runtime, cuda_graphs=not brief))
        engine = Engine(sizes, variant, LoadedModel(config, weights, None, "two layers", "random"))
        for output in engine.generate(prompts, sampling):
            if output.error:
                raise RuntimeError(output.error)


def main(section: str, file: Path, brief: bool) -> None:
    """Launch a section on the GPU, and count."""
    launches: Counter[str] = Counter()
    triton.knobs.runtime.launch_enter_hook.add(lambda metadata: launches.update([metadata.get()["name"]]))
    launch(section, torch.device("cuda"), brief)
    torch.cuda.synchronize()
    file.write_text(json.dumps(launches))


if __name__ == "__main__":
    main(sys.argv[-2], Path(sys.argv[-1]), "--brief" in sys.argv)
