"""A slow and simple engine over a Hugging Face folder, for the fake packages beside this file: the fp32 reference."""

from collections.abc import Callable
from pathlib import Path

import torch

from engine.loading import LoadedModel
from engine.loading.hf_config import read_hf_config
from engine.loading.safetensors import load_safetensors
from experiments.measuring.reference import reference_logits


def load(folder: str, dtype: torch.dtype) -> LoadedModel:
    """The model of a folder."""
    config = read_hf_config(Path(folder) / "config.json")
    return LoadedModel(config, load_safetensors(Path(folder), config, dtype, "cpu"), None, folder, "real")


@torch.inference_mode()
def answer(model: LoadedModel, prompt: list[int], count: int, choose: Callable[[torch.Tensor], int]) -> list[int]:
    """`count` tokens, each chosen from the logits after all that came before."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(choose(reference_logits(model, torch.tensor(tokens))[-1]))
    return tokens[len(prompt) :]
