"""vLLM through its offline class `LLM`: token ids in and out, no tokeniser, greedy, no prefix cache."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.config import RuntimeConfig
from experiments.errors import UserError
from experiments.peers.adapter import LoadPeer

EXTRA = "vllm"
BLOCK_SIZE = 16
FULL, EAGER = RuntimeConfig(cuda_graphs=True, compile=True), RuntimeConfig(cuda_graphs=False)
# Its own default on most GPUs; more where a cell has more.
MAX_NUM_SEQS = 256
INCLUDES = (
    "Token ids in and out, no tokeniser, detokenize=False. LLM.generate(): admission, scheduler, sampler and output "
    "objects of each step. While some prompts of a decode cell's batch are prefilled, others of it decode already."
)


def missing(path: str) -> str | None:
    """vLLM is an extra."""
    if importlib.util.find_spec("vllm") is None:
        return f"vllm is not installed; for its cells: pip install 'fusebench[{EXTRA}]'"
    return None


def import_early() -> None:
    """Its offline class, which brings nearly all of it."""
    from vllm import LLM  # noqa: F401


def load(request: LoadPeer) -> "Vllm":
    """The engine with its defaults: CUDA graphs, torch.compile, asynchronous scheduling; or `enforce_eager`."""
    if request.runtime not in (FULL, EAGER):
        raise UserError(
            "a vllm variant has graphs and compilation both (runtime.cuda_graphs=true runtime.compile=true) or neither"
        )
    from vllm import LLM

    engine = LLM(
        model=str(request.folder),
        skip_tokenizer_init=True,
        dtype=request.dtype,
        seed=request.seed,
        enforce_eager=request.runtime == EAGER,
        max_model_len=request.max_model_len,
        max_num_seqs=max(MAX_NUM_SEQS, request.max_num_seqs),
        enable_prefix_caching=False,
        disable_log_stats=True,
        **_memory(request),
    )
    return Vllm(engine)


def _memory(request: LoadPeer) -> dict[str, Any]:
    """A cache for the largest cell and no more, so that other workers fit beside it."""
    if request.device != "cuda":
        return {}
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    # It refuses to start where this share of all memory is not free, though with a given cache it needs less.
    return {"kv_cache_memory_bytes": request.kv_bytes, "gpu_memory_utilization": 0.9 * free_bytes / total_bytes}


class Vllm:
    """A running engine."""

    def __init__(self, engine: Any) -> None:
        import vllm

        self._engine, self._config = engine, engine.llm_engine.vllm_config
        apart = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") != "0"
        hop = (
            "The engine runs in a process of its own: each step crosses over." if apart else "It runs in this process."
        )
        self.includes = f"{INCLUDES} {hop}"
        compilation = self._config.compilation_config
        self.facts = {
            "version": vllm.__version__,
            "attention": _attention(self._config),
            "graphs": _name(getattr(compilation, "cudagraph_mode", None)),
            "compile": _name(getattr(compilation, "mode", None)),
            "async_scheduling": _name(getattr(self._config.scheduler_config, "async_scheduling", None)),
            "max_num_batched_tokens": _name(getattr(self._config.scheduler_config, "max_num_batched_tokens", None)),
        }

    def generate(self, prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
        """See Peer."""
        from vllm import SamplingParams

        asked = [
            SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            for tokens in num_tokens
        ]
        outputs = self._engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def logits(self, tokens_T: Tensor) -> None:
        """None: it gives log-probabilities of a few tokens, by another way than the one that is timed."""

    def rest(self) -> None:
        """Nothing runs between calls."""

    def counters(self) -> dict[str, float]:
        """Blocks of its cache, and its limit on a batch."""
        cache, scheduler = self._config.cache_config, self._config.scheduler_config
        values = {
            "kv_blocks": getattr(cache, "num_gpu_blocks", None),
            "block_size": getattr(cache, "block_size", None),
            "max_num_seqs": getattr(scheduler, "max_num_seqs", None),
        }
        return {name: float(value) for name, value in values.items() if value is not None}


def _attention(config: Any) -> str:
    """The attention backend: of its layers where they live in this process, else what was asked of the other one."""
    layers = getattr(config.compilation_config, "static_forward_context", None) or {}
    for layer in layers.values():
        if hasattr(layer, "attn_backend"):
            return str(layer.attn_backend.get_name())
    return _name(getattr(getattr(config, "attention_config", None), "backend", None))


def _name(value: Any) -> str:
    """An enum's name, anything else in words; what this release does not say is `not told`."""
    return "not told" if value is None else str(getattr(value, "name", value))
