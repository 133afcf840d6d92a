"""Find the model that `EngineConfig.model` names, and load it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from engine.config import ModelConfig
from engine.errors import ModelError
from engine.loading.gguf import load_gguf
from engine.loading.hf_config import read_hf_config
from engine.loading.model_yaml import load_model_yaml, model_names
from engine.loading.random import random_weights
from engine.loading.safetensors import has_weights, load_safetensors
from engine.loading.tokenizer import Tokenizer, load_tokenizer
from engine.parallel.ranks import ALONE, Ranks
from engine.weights import ModelWeights

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, or one rank's weights of it; `config` is the whole model's.

    `source` says in words where it came from.
    """

    config: ModelConfig
    weights: ModelWeights
    tokenizer: Tokenizer | None
    source: str
    weights_kind: Literal["real", "random"]


def load_model(
    model: str | Path, dtype: torch.dtype, device: str | torch.device, seed: int, ranks: Ranks = ALONE
) -> LoadedModel:
    """Load one rank's part of a model; `seed` counts for random weights only. Raises ModelError naming what was tried.

    `model` is, tried in this order: a Hugging Face folder, or one with a single GGUF file; a GGUF file; a config.json
    (seeded random weights of that shape); a name under configs/model (likewise); a hub id.
    """
    path = Path(model)
    if path.is_dir():
        return _load_folder(path, dtype, device, ranks)
    if path.is_file():
        return _load_file(path, dtype, device, seed, ranks)
    if str(model) in model_names():
        config = load_model_yaml(str(model))
        weights = random_weights(config, dtype, device, seed, ranks)
        return LoadedModel(config, weights, None, f"configs/model/{model}.yaml, random weights, seed {seed}", "random")
    if isinstance(model, str) and HUB_ID.fullmatch(model) and not model.startswith("."):
        return _load_folder(_download(model), dtype, device, ranks)
    raise ModelError(f"model={str(model)!r} is no file, no folder, no hub id and not one of {', '.join(model_names())}")


def _load_folder(folder: Path, dtype: torch.dtype, device: str | torch.device, ranks: Ranks) -> LoadedModel:
    config_path, ggufs = folder / "config.json", sorted(folder.glob("*.gguf"))
    if not config_path.exists() and len(ggufs) == 1:
        return _load_file(ggufs[0], dtype, device, 0, ranks)
    if not config_path.exists() and ggufs:
        names = ", ".join(path.name for path in ggufs)
        raise ModelError(f"{folder} holds several GGUF files ({names}); name the one to load")
    if not config_path.exists():
        raise ModelError(f"{folder} holds neither a config.json nor a GGUF file; give the folder of a model")
    config = read_hf_config(config_path)
    if not has_weights(folder):
        raise ModelError(
            f"{folder} has a config.json but no *.safetensors; add the weights, or give {config_path} itself "
            "for seeded random weights of its shape"
        )
    tokenizer = load_tokenizer(folder, config.eos_token_ids)
    weights = load_safetensors(folder, config, dtype, device, ranks)
    return LoadedModel(config, weights, tokenizer, str(folder), "real")


def _load_file(path: Path, dtype: torch.dtype, device: str | torch.device, seed: int, ranks: Ranks) -> LoadedModel:
    if path.suffix == ".gguf":
        return LoadedModel(*load_gguf(path, dtype, device, ranks), str(path), "real")
    if path.name == "config.json":
        config = read_hf_config(path)
        tokenizer = load_tokenizer(path.parent, config.eos_token_ids)
        weights = random_weights(config, dtype, device, seed, ranks)
        return LoadedModel(config, weights, tokenizer, f"{path}, random weights, seed {seed}", "random")
    raise ModelError(f"model={str(path)!r} is neither a folder, a .gguf file nor a config.json")


def _download(hub_id: str) -> Path:
    """The folder of a hub model, downloaded or from the local cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub client raises a different class for each of its many causes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model={hub_id!r} is no file, no folder, not one of {', '.join(model_names())}, "
            f"and the hub did not give it: {reason}"
        ) from error
