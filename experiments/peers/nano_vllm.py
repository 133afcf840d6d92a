"""nano-vLLM from a checkout, unmodified. One engine a process.

It opens a process group of one at a fixed port, so that a second engine on the machine could not start; here each is
given a free one.

It has no greedy sampling. A temperature as small as TEMPERATURE makes the likeliest token certain, unless two logits
are equal or all but equal; then either is right by the verdict's rule of margins. All temperatures run the same code.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.loading.keys import read_json
from experiments.config import RuntimeConfig
from experiments.environment import run_quietly
from experiments.errors import Unsupported, UserError
from experiments.peers.adapter import LoadPeer

BLOCK_SIZE = 256
TEMPERATURE = 1e-6
FULL, EAGER = RuntimeConfig(cuda_graphs=True, compile=True), RuntimeConfig(cuda_graphs=False, compile=True)
# Activations of its warm-up step and what kernels take; it takes them off what it may use before it sizes the cache.
WORKSPACE_BYTES = 3 * 2**30
INCLUDES = (
    "Token ids in; its detokeniser runs once per finished request and cannot be left out. generate(): scheduler and "
    f"host lists of each step, sampler at temperature {TEMPERATURE:g} (greedy is refused), progress counters. Its "
    "prefix cache cannot be switched off; it finds nothing, since no prompt comes twice. It runs in this process."
)


def missing(path: str) -> str | None:
    """It is no package: its checkout is named."""
    if not path:
        return "name a checkout of nano-vLLM: variant.nano_vllm.path=FOLDER"
    return None


def import_early() -> None:
    """What it takes of transformers; the rest is small, or needs its path."""
    from transformers import AutoConfig, AutoTokenizer, Qwen3Config  # noqa: F401


def load(request: LoadPeer) -> "NanoVllm":
    """The engine for a Qwen3 with plain RoPE, which is all that it computes."""
    if request.runtime not in (FULL, EAGER):
        raise UserError("a nano_vllm variant always compiles its small operations: runtime.compile=true")
    if request.model.architecture != "qwen3" or request.model.rope.kind != "default":
        raise Unsupported(
            f"nano-vLLM has Qwen3 with plain RoPE only, not {request.model.architecture} with {request.model.rope.kind}"
        )
    stored = read_json(request.folder / "config.json")
    if (dtype := stored.get("torch_dtype") or stored.get("dtype")) != request.dtype:
        raise Unsupported(
            f"nano-vLLM runs a checkpoint in the dtype of its config.json, {dtype}, not in {request.dtype}"
        )
    path = Path(request.path).expanduser().resolve()
    sys.path.insert(0, str(path))
    nanovllm: Any = importlib.import_module("nanovllm")
    with _at_a_free_port():
        engine = nanovllm.LLM(
            str(request.folder),
            enforce_eager=request.runtime == EAGER,
            max_model_len=request.max_model_len,
            # Its graphs come in sixteens, and a larger batch than the last one has none.
            max_num_seqs=-(-request.max_num_seqs // 16) * 16,
            **_memory(request),
        )
    peer = NanoVllm(engine, nanovllm.SamplingParams, path)
    if (blocks := int(peer.counters()["kv_blocks"])) * BLOCK_SIZE < request.kv_tokens:
        raise RuntimeError(f"it made a cache of {blocks} blocks, too few for the largest cell: it would preempt")
    return peer


@contextmanager
def _at_a_free_port() -> Iterator[None]:
    """Inside, `init_process_group` takes any free port instead of the one that it is told."""
    dist: Any = importlib.import_module("torch.distributed")
    told = dist.init_process_group

    def anywhere(backend: str, _address: str, *, world_size: int, rank: int) -> None:
        store = dist.TCPStore("localhost", 0, world_size, is_master=True)
        told(backend, store=store, world_size=world_size, rank=rank)

    dist.init_process_group = anywhere
    try:
        yield
    finally:
        dist.init_process_group = told


def _memory(request: LoadPeer) -> dict[str, Any]:
    """A cache for the largest cell and no more: it counts what other processes hold as its own."""
    if request.device != "cuda":
        return {}
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    weights_bytes = sum(file.stat().st_size for file in request.folder.glob("*.safetensors"))
    wanted_bytes = total_bytes - free_bytes + weights_bytes + request.kv_bytes + WORKSPACE_BYTES
    return {"gpu_memory_utilization": min(0.95, wanted_bytes / total_bytes)}


class NanoVllm:
    """A running engine."""

    includes = INCLUDES

    def __init__(self, engine: Any, sampling: Any, path: Path) -> None:
        self._engine, self._sampling = engine, sampling
        # A copy without a history may name its commit in a file.
        noted = path / "COMMIT"
        commit = noted.read_text() if noted.is_file() else run_quietly("git", "-C", str(path), "rev-parse", "HEAD")
        changed = run_quietly("git", "-C", str(path), "status", "--porcelain", "--untracked-files=no")
        self.facts = {
            "version": (commit or "unknown").strip(),
            "unmodified": {None: "unknown", "": "yes"}.get(changed, "no"),
            "attention": _flash_attention(),
            "graphs": "none" if engine.model_runner.enforce_eager else "decode body only",
            "compile": "norms, RoPE, activation, sampler",
        }

    def generate(self, prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
        """See Peer."""
        asked = [self._sampling(temperature=TEMPERATURE, max_tokens=tokens, ignore_eos=True) for tokens in num_tokens]
        outputs = self._engine.generate(list(prompts), asked, use_tqdm=False)
        return [list(output["token_ids"]) for output in outputs]

    def logits(self, tokens_T: Tensor) -> None:
        """None: it gives tokens only."""

    def rest(self) -> None:
        """Nothing runs between calls."""

    def counters(self) -> dict[str, float]:
        """Blocks of its cache."""
        config = self._engine.model_runner.config
        return {"kv_blocks": float(config.num_kvcache_blocks), "block_size": float(config.kvcache_block_size)}


def _flash_attention() -> str:
    """The module that it imported under this name; a stand-in over another library has no version."""
    module = sys.modules.get("flash_attn")
    return "unknown" if module is None else f"flash_attn {getattr(module, '__version__', 'of no version')}"
