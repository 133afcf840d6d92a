"""Hugging Face transformers: `generate` for equal prompts and answers, its continuous batching for unequal ones."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from experiments.config import RuntimeConfig
from experiments.errors import UserError
from experiments.measuring.session import MAX_BATCHED_TOKENS
from experiments.peers.adapter import LoadPeer

BLOCK_SIZE = 256
DYNAMIC, STATIC = RuntimeConfig(cuda_graphs=False), RuntimeConfig(cuda_graphs=True, compile=True)
INCLUDES = (
    "Token ids in and out, no tokeniser. Decode and prefill: generate() over one dense batch, its Python loop with "
    "logits processors and stopping checks in each step. Offline: continuous batching, its scheduler in a thread of "
    "this process, its attention flash where that is installed."
)


def missing(path: str) -> str | None:
    """Nothing: transformers is one of our dependencies."""
    return None


def import_early() -> None:
    """The class of any model, which is imported late by itself."""
    from transformers import AutoModelForCausalLM, GenerationConfig  # noqa: F401


def load(request: LoadPeer) -> "Transformers":
    """The model in its default attention. `runtime` chooses the cache: dynamic and eager, or static and compiled."""
    if request.runtime not in (DYNAMIC, STATIC):
        raise UserError(
            "a transformers variant runs eagerly (runtime.cuda_graphs=false) or compiled "
            "(runtime.cuda_graphs=true runtime.compile=true)"
        )
    import transformers

    # With accelerate the weights go to the device one by one, and never lie in the host's memory as a whole.
    direct = {"device_map": request.device} if transformers.utils.is_accelerate_available() else {}
    dtype = getattr(torch, request.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(request.folder, dtype=dtype, **direct)
    model = model.to(request.device).eval()
    # Of its own accord a checkpoint's generation config samples, and stops at an end token.
    model.generation_config = transformers.GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
    return Transformers(model, request, transformers.__version__)


class Transformers:
    """A loaded model."""

    includes = INCLUDES

    def __init__(self, model: Any, request: LoadPeer, version: str) -> None:
        self._model, self._request = model, request
        self._running, self._manager = ExitStack(), None
        self._static = request.runtime == STATIC
        self.facts = {
            "version": version,
            "attention": str(model.config._attn_implementation),
            # It compiles of its own accord, on a GPU only.
            "cache": "static, the decode step compiled where there is a GPU" if self._static else "dynamic, eager",
        }

    def generate(self, prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
        """See Peer."""
        if len(set(map(len, prompts))) == len(set(num_tokens)) == 1:
            return self._generate_dense(prompts, num_tokens[0])
        return self._generate_continuously(prompts, num_tokens)

    def _generate_dense(self, prompts: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
        self.rest()  # While batching runs, the model's attention is that of its cache.
        ids_BT = torch.tensor(prompts, device=self._request.device)
        found_BT = self._model.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            max_new_tokens=num_tokens,
            cache_implementation="static" if self._static else None,
        )
        answers: list[list[int]] = found_BT[:, ids_BT.shape[1] :].tolist()
        return answers

    def _generate_continuously(self, prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
        self._manager = manager = self._manager or self._start_manager()
        asked = [
            manager.add_request(prompt, max_new_tokens=tokens)
            for prompt, tokens in zip(prompts, num_tokens, strict=True)
        ]
        finished = _finished(manager, len(asked))
        return [finished[request_id] for request_id in asked]

    def _start_manager(self) -> Any:
        import transformers

        # -1: no end token stops a request.
        generation = transformers.GenerationConfig(do_sample=False, eos_token_id=-1)
        batching = transformers.ContinuousBatchingConfig(
            # Its blocks are of BLOCK_SIZE unasked; releases name the key differently.
            num_blocks=-(-self._request.queued_tokens // BLOCK_SIZE),
            max_batch_tokens=min(MAX_BATCHED_TOKENS, self._request.queued_tokens),
            allow_block_sharing=False,
        )
        return self._running.enter_context(
            self._model.continuous_batching_context_manager(
                generation_config=generation, continuous_batching_config=batching
            )
        )

    def rest(self) -> None:
        """Stop the thread of continuous batching, which looks for requests ten times a second, and free its cache."""
        self._running.close()
        self._manager = None

    def logits(self, tokens_T: Tensor) -> Tensor:
        """See Peer."""
        self.rest()
        logits_TV: Tensor = self._model(tokens_T[None]).logits[0]
        return logits_TV

    def counters(self) -> dict[str, float]:
        """None are kept."""
        return {}


def _finished(manager: Any, count: int) -> dict[str, list[int]]:
    """The answers of so many requests, by their ids."""
    answers: dict[str, list[int]] = {}
    while len(answers) < count:
        output = manager.get_result(timeout=1)
        if output is None:
            if not manager.is_running():
                raise RuntimeError(f"continuous batching ended with {count - len(answers)} requests unanswered")
        elif output.error is not None:
            raise RuntimeError(f"continuous batching failed a request: {output.error}")
        elif output.is_finished():
            answers[output.request_id] = list(output.generated_tokens)
    return answers
