"""vLLM's own v1 scheduler and KV cache manager; needs the package vllm (tried with 0.26.0, without a GPU)."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.environment import package_version
from experiments.errors import UserError
from experiments.traffic.records import Limits, Request, Share, Step

BLOCK_SIZE = 16  # Its default.
MAX_MODEL_LEN = 8192
# Only what its configuration insists on; no weight is ever loaded.
MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 32_000,
    "max_position_embeddings": MAX_MODEL_LEN,
}


class Vllm:
    """Decodes and prefill chunks mixed in a step; victims are the youngest."""

    def __init__(self, limits: Limits) -> None:
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise UserError(f"vllm cannot be imported: {error}; install vllm, or leave it out of engines") from error
        self.version = package_version("vllm") or ""
        self.block_size = BLOCK_SIZE
        self.num_blocks = limits.pool_tokens // BLOCK_SIZE
        self._scheduler = _scheduler(limits, self.num_blocks + 1)  # It keeps one block for itself.
        self._answers: dict[str, tuple[int, ...]] = {}

    def add(self, request_id: int, request: Request) -> None:
        """Queue it."""
        from vllm import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request as VllmRequest

        name = str(request_id)
        self._answers[name] = request.answer
        sampling = SamplingParams(temperature=0.0, max_tokens=len(request.answer), ignore_eos=True)
        hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
        self._scheduler.add_request(VllmRequest(name, list(request.prompt), sampling, None, block_hasher=hasher))

    def step(self) -> Step:
        """As its engine core's step, the model left out."""
        from vllm.v1.outputs import ModelRunnerOutput

        output = self._scheduler.schedule()
        requests = self._scheduler.requests
        scheduled = output.num_scheduled_tokens
        shares = tuple(Share(int(n), requests[n].num_computed_tokens - count, count) for n, count in scheduled.items())
        sampled = [self._next_token(requests[name]) for name in scheduled]
        places = {name: i for i, name in enumerate(scheduled)}
        self._scheduler.update_from_output(output, ModelRunnerOutput(list(scheduled), places, sampled))
        return Step(shares, frozenset(map(int, output.preempted_req_ids or ())))

    def _next_token(self, request: Any) -> list[int]:
        if request.num_computed_tokens < request.num_tokens:
            return []
        return [self._answers[request.request_id][request.num_output_tokens]]

    @property
    def busy(self) -> bool:
        """Requests are left."""
        return bool(self._scheduler.has_unfinished_requests())

    @property
    def used_blocks(self) -> int:
        """Blocks with a reference."""
        return self.num_blocks - int(self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def holdings(self) -> Iterable[tuple[Sequence[int], int]]:
        """Of every running request."""
        manager = self._scheduler.kv_cache_manager
        return ((manager.get_block_ids(r.request_id)[0], r.num_computed_tokens) for r in self._scheduler.running)


def _scheduler(limits: Limits, num_blocks: int) -> Any:
    import torch
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import init_none_hash
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    init_none_hash(sha256)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL))
        model = ModelConfig(model=folder, dtype="float16", max_model_len=MAX_MODEL_LEN, skip_tokenizer_init=True)
        config = VllmConfig(
            model_config=model,
            cache_config=CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=True),
            scheduler_config=SchedulerConfig(
                max_num_seqs=limits.max_num_seqs,
                max_num_batched_tokens=limits.max_num_batched_tokens,
                max_model_len=MAX_MODEL_LEN,
                is_encoder_decoder=False,
            ),
            device_config=DeviceConfig("cpu"),
        )
    config.cache_config.num_gpu_blocks = num_blocks
    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=64, dtype=torch.float16)
    pool = KVCacheConfig(num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    return Scheduler(config, pool, StructuredOutputManager(config), BLOCK_SIZE)
