"""As much of vLLM 0.26's offline API as the adapter uses, and no more: another keyword is a TypeError.

FAKE_VLLM_DIES=N ends the process in the Nth call of generate.
"""

import os
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import fake_engine
import torch

__version__ = "0.26.0"


class CUDAGraphMode(Enum):
    """Some of its modes."""

    NONE = 0
    FULL_AND_PIECEWISE = 1


class CompilationMode(Enum):
    """Some of its modes."""

    NONE = 0
    VLLM_COMPILE = 3


@dataclass(kw_only=True)
class SamplingParams:
    """Greedy where the temperature is 0."""

    temperature: float = 1.0
    max_tokens: int = 16
    ignore_eos: bool = False
    detokenize: bool = True


class Backend:
    """An attention backend."""

    @staticmethod
    def get_name() -> str:
        """Its name."""
        return "FLASH_ATTN"


class LLM:
    """The engine."""

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        seed: int = 0,
        enforce_eager: bool = False,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        enable_prefix_caching: bool | None = None,
        disable_log_stats: bool = False,
        kv_cache_memory_bytes: int | None = None,
        gpu_memory_utilization: float = 0.9,
    ) -> None:
        assert skip_tokenizer_init
        self._model, self._calls, self._longest = fake_engine.load(model, getattr(torch, dtype)), 0, max_model_len
        graphs = CUDAGraphMode.NONE if enforce_eager else CUDAGraphMode.FULL_AND_PIECEWISE
        mode = CompilationMode.NONE if enforce_eager else CompilationMode.VLLM_COMPILE
        layers = {"model.layers.0.self_attn.attn": SimpleNamespace(attn_backend=Backend)}
        self.llm_engine = SimpleNamespace(
            vllm_config=SimpleNamespace(
                compilation_config=SimpleNamespace(cudagraph_mode=graphs, mode=mode, static_forward_context=layers),
                scheduler_config=SimpleNamespace(
                    async_scheduling=True, max_num_batched_tokens=16384, max_num_seqs=max_num_seqs
                ),
                cache_config=SimpleNamespace(num_gpu_blocks=100, block_size=16, prefix=enable_prefix_caching),
            )
        )

    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: list[SamplingParams], *, use_tqdm: bool = True
    ) -> list[Any]:
        """One output per prompt, in order."""
        self._calls += 1
        if self._calls == int(os.environ.get("FAKE_VLLM_DIES", "0")):
            print("RuntimeError: an illegal memory access was encountered", flush=True)
            os._exit(1)
        assert not use_tqdm
        outputs = []
        for prompt, sampling in zip(prompts, sampling_params, strict=True):
            tokens = prompt["prompt_token_ids"]
            assert sampling.temperature == 0.0
            assert not sampling.detokenize
            assert self._longest is None or len(tokens) + sampling.max_tokens <= self._longest
            found = fake_engine.answer(self._model, tokens, sampling.max_tokens, lambda row: int(row.argmax()))
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=found)]))
        return outputs
