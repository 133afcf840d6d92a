"""nano-vLLM's own scheduler and block manager, from a checkout at bb823b3 or near it; needs xxhash.

Its package cannot be imported without flash-attn, so its modules are loaded without running the package's `__init__`.
"""

import importlib
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from experiments.errors import UserError
from experiments.traffic.records import Limits, Request, Share, Step

BLOCK_SIZE = 256  # Its default, and the least that it takes.


class NanoVllm:
    """Prefill before decode, one kind a step; victims are the youngest."""

    def __init__(self, limits: Limits, checkout: Path) -> None:
        modules = _modules(checkout)
        self.version = _commit(checkout)
        self.block_size = BLOCK_SIZE
        self.num_blocks = limits.pool_tokens // BLOCK_SIZE
        modules["sequence"].Sequence.block_size = BLOCK_SIZE
        self._sequence, self._sampling = modules["sequence"].Sequence, modules["sampling"].SamplingParams
        self._scheduler: Any = modules["scheduler"].Scheduler(
            SimpleNamespace(
                max_num_seqs=limits.max_num_seqs,
                max_num_batched_tokens=limits.max_num_batched_tokens,
                eos=-1,
                kvcache_block_size=BLOCK_SIZE,
                num_kvcache_blocks=self.num_blocks,
            )
        )
        self._ids: dict[int, int] = {}
        self._answers: dict[int, tuple[int, ...]] = {}
        self._preempted: set[int] = set()
        preempt = self._scheduler.preempt

        def noted(sequence: Any) -> None:
            self._preempted.add(self._ids[sequence.seq_id])
            preempt(sequence)

        self._scheduler.preempt = noted

    def add(self, request_id: int, request: Request) -> None:
        """Queue it."""
        sampling = self._sampling(max_tokens=len(request.answer), ignore_eos=True)
        sequence = self._sequence(list(request.prompt), sampling)
        self._ids[sequence.seq_id] = request_id
        self._answers[sequence.seq_id] = request.answer
        self._scheduler.add(sequence)

    def step(self) -> Step:
        """As its `LLMEngine.step`, the model left out."""
        self._preempted.clear()
        scheduled, is_prefill = self._scheduler.schedule()
        shares = tuple(
            # A decode step counts no cached tokens: it computes the newest.
            Share(self._ids[s.seq_id], s.num_cached_tokens if is_prefill else len(s) - 1, s.num_scheduled_tokens)
            for s in scheduled
        )
        tokens = [self._answers[s.seq_id][s.num_completion_tokens] for s in scheduled]
        self._scheduler.postprocess(scheduled, tokens, is_prefill)
        return Step(shares, frozenset(self._preempted))

    @property
    def busy(self) -> bool:
        """Requests are left."""
        return not self._scheduler.is_finished()

    @property
    def used_blocks(self) -> int:
        """Blocks with a reference."""
        return len(self._scheduler.block_manager.used_block_ids)

    def holdings(self) -> Iterable[tuple[Sequence[int], int]]:
        """Of every sequence with a block table."""
        sequences = (*self._scheduler.running, *self._scheduler.waiting)
        return ((s.block_table, s.num_cached_tokens) for s in sequences if s.block_table)


def _modules(checkout: Path) -> dict[str, ModuleType]:
    package = checkout / "nanovllm"
    if not (package / "engine/scheduler.py").is_file():
        raise UserError(
            f"nano_vllm_path={checkout}: no nanovllm/engine/scheduler.py there; give a checkout of nano-vLLM"
        )
    bare = ModuleType("nanovllm")
    bare.__path__ = [str(package)]
    sys.modules["nanovllm"] = bare
    try:
        return {
            "scheduler": importlib.import_module("nanovllm.engine.scheduler"),
            "sequence": importlib.import_module("nanovllm.engine.sequence"),
            "sampling": importlib.import_module("nanovllm.sampling_params"),
        }
    except ModuleNotFoundError as error:
        raise UserError(
            f"nano_vllm_path={checkout}: its scheduler needs the package {error.name}; install it"
        ) from error


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
