"""A model small enough that an engine's step takes a millisecond, and sharp enough that a wrong page changes tokens."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteFallback, Fuse
from tokenizers.decoders import Sequence as Sequential
from tokenizers.models import BPE

from engine import BASELINE, Engine, EngineConfig, ModelConfig, RequestOutput, SamplingParams, Variant
from engine.loading import LoadedModel
from engine.loading.random import random_weights
from engine.loading.tokenizer import Tokenizer

# Drawn matrices are this much larger than random weights are elsewhere, so that every token of a context counts.
SHARPNESS = 12.0
CONFIG = ModelConfig(
    architecture="qwen3",
    vocab_size=67,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    head_dim=8,
    max_position_embeddings=512,
    qk_norm=True,
    eos_token_ids=(2,),
)


@functools.cache
def tiny_model() -> LoadedModel:
    """The model of `CONFIG`, the same in every test; nothing may write to its weights."""
    weights = random_weights(CONFIG, torch.float32, "cpu", seed=0)
    for layer in weights.layers:
        for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
            linear.weight_NK.mul_(SHARPNESS)
    weights.lm_head.weight_NK.mul_(SHARPNESS)
    return LoadedModel(CONFIG, weights, None, "tests", "random")


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """Letters, pairs of letters, and single bytes, of which it takes several to make an accented letter or a face."""
    letters = [chr(ord("a") + i) for i in range(26)]
    pairs = [letters[i] + letters[(5 * i + 1) % 26] for i in range(26)]
    some_bytes = [f"<0x{byte:02X}>" for byte in "é😀".encode()]
    words = ["<unk>", "<s>", "</s>", *letters, *pairs, *some_bytes, " "]
    vocab = {word: i for i, word in enumerate([*words, *(f"w{i}" for i in range(len(words), CONFIG.vocab_size))])}
    backend = Backend(BPE(vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = Sequential([ByteFallback(), Fuse()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, eos_ids=(2,))


def with_tokenizer() -> LoadedModel:
    """The tiny model, able to read and write."""
    return replace(tiny_model(), tokenizer=tiny_tokenizer())


def tiny_engine(variant: Variant = BASELINE, loaded: LoadedModel | None = None, **changes: Any) -> Engine:
    """An fp32 engine on the CPU with pages of 16 tokens; `changes` are keys of its config."""
    sizes = {"block_size": 16, "max_model_len": 256, "max_num_seqs": 8, "max_num_batched_tokens": 512}
    config = EngineConfig("tests", **{"dtype": "float32", **sizes, "num_kv_blocks": 64, **changes})
    return Engine(config, variant, loaded or tiny_model())


def prompt_of(length: int, seed: int = 0, vocab_size: int = CONFIG.vocab_size) -> list[int]:
    """Random tokens, none of them the model's end token."""
    ids = torch.randint(3, vocab_size, (length,), generator=torch.Generator().manual_seed(1000 * seed + length))
    tokens: list[int] = ids.tolist()
    return tokens


@functools.cache
def alone(prompt: tuple[int, ...], sampling: SamplingParams) -> RequestOutput:
    """The request's answer with the engine to itself: no batch, no chunks, no cached prefix, no overlap, ample room."""
    plain = {"max_num_seqs": 1, "overlap": False, "enable_prefix_caching": False}
    return tiny_engine(**plain).generate([prompt], sampling)[0]


PROMPTS = [prompt_of(length) for length in (1, 15, 16, 17, 33, 64, 70, 90)]
GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)


def expected(prompts: Sequence[Sequence[int]], sampling: SamplingParams = GREEDY) -> list[list[int]]:
    """Each prompt's tokens, alone."""
    return [alone(tuple(prompt), sampling).token_ids for prompt in prompts]


def run(engine: Engine, max_steps: int = 5000) -> dict[int, RequestOutput]:
    """Step until nothing is left, checking the books after every step; finished outputs by request id."""
    finished: dict[int, RequestOutput] = {}
    for _ in range(max_steps):
        if not engine.has_work:
            return finished
        outputs = engine.step()
        engine.check_integrity()
        finished.update((output.request_id, output) for output in outputs if output.finished)
    raise AssertionError(f"requests are left after {max_steps} steps")


def serve(engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> list[list[int]]:
    """Tokens of each prompt, served together with the books checked."""
    ids = [engine.add_request(prompt, sampling) for prompt in prompts]
    finished = run(engine)
    return [finished[request_id].token_ids for request_id in ids]
