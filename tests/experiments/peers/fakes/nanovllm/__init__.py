"""As much of nano-vLLM's API (at bb823b3) as the adapter uses, with its habits: unknown keywords are dropped, a
tokenizer must be there and decodes every answer, greedy sampling is refused."""

from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

import fake_engine
import torch
import transformers


@dataclass
class SamplingParams:
    """How one request is sampled."""

    temperature: float = 1.0
    max_tokens: int = 64
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        assert self.temperature > 1e-10, "greedy sampling is not permitted"


@dataclass
class Config:
    """What the engine is told; the rest of its constructor's keywords it does not see."""

    model: str
    max_num_seqs: int = 512
    max_model_len: int = 4096
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    kvcache_block_size: int = 256
    num_kvcache_blocks: int = 40
    hf_config: Any = field(default=None)


class LLM:
    """The engine."""

    def __init__(self, model: str, **kwargs: Any) -> None:
        known = {each.name for each in fields(Config)}
        config = Config(model, **{name: value for name, value in kwargs.items() if name in known})
        assert config.max_num_seqs % 16 == 0
        config.hf_config = transformers.AutoConfig.from_pretrained(model)
        self._model = fake_engine.load(model, config.hf_config.dtype)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model, use_fast=True)
        assert isinstance(self._tokenizer.eos_token_id, int)
        self.model_runner = SimpleNamespace(config=config, enforce_eager=config.enforce_eager)

    def generate(
        self, prompts: list[list[int]], sampling_params: list[SamplingParams], use_tqdm: bool = True
    ) -> list[dict[str, Any]]:
        """A text and its tokens for each prompt."""
        found = []
        for prompt, sampling in zip(prompts, sampling_params, strict=True):
            tokens = fake_engine.answer(self._model, prompt, sampling.max_tokens, _sampler(sampling.temperature))
            found.append({"text": self._tokenizer.decode(tokens), "token_ids": tokens})
        return found


def _sampler(temperature: float) -> Any:
    """Softmax at a temperature, and a draw by exponential noise."""

    def choose(logits: torch.Tensor) -> int:
        probs = torch.softmax(logits.float() / temperature, dim=-1)
        return int((probs / torch.empty_like(probs).exponential_(1).clamp_min(1e-10)).argmax())

    return choose
