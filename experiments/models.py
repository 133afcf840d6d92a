"""Which model a user means, and what can be known of it without loading it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.compose import load_yaml, names, suggest
from experiments.errors import UserError

# The keys of configs/model are those of the engine's ModelConfig, which is not imported here: a test compares them.
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    "max_position_embeddings",
)
REQUIRED = ("name", "architecture", *SIZES)
OPTIONAL = (
    *("norm_eps", "tie_word_embeddings", "qkv_bias", "o_bias", "mlp_bias", "qk_norm", "sliding_window", "rope"),
    *("bos_token_id", "eos_token_ids"),
)


@dataclass(frozen=True)
class Model:
    """A model as planned: `name` is its short, file-name-safe name in every table, `source` what the user typed.

    `sizes` has the dimensions under the keys of configs/model, or is empty where only loading can tell.
    """

    name: str
    source: str
    max_positions: int | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)


def find_model(source: str) -> Model:
    """The model behind a name under configs/model, a folder, a GGUF file or a hub id; UserError where there is none."""
    path = Path(source).expanduser()
    if source in names("model"):
        return _named(source)
    if path.is_dir():
        return _folder(source, path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"models={source}: there is no such file")
        return Model(_short(path.stem), source)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        return Model(_short(source), source)
    if "/" in source:
        raise UserError(f"models={source}: there is no such folder")
    return _named(source)


def _named(name: str) -> Model:
    """A file under configs/model; UserError lists what there is where the name is none of them."""
    loaded: Any = OmegaConf.to_container(load_yaml("model", name))
    sizes: dict[str, Any] = loaded
    _check_keys(sizes, f"configs/model/{name}.yaml")
    return Model(name, name, sizes["max_position_embeddings"], sizes)


def _check_keys(sizes: Mapping[str, Any], file: str) -> None:
    """What a plan can know to be wrong; the engine checks the other values when a worker loads the model."""
    known = (*REQUIRED, *OPTIONAL)
    for key in map(str, sizes):
        if key not in known:
            raise UserError(f"{file}: {key} is not a key{suggest(key, known)} (there are {', '.join(known)})")
    for key in REQUIRED:
        if key not in sizes:
            raise UserError(f"{file}: {key} is missing")
    for key in SIZES:
        if type(sizes[key]) is not int or sizes[key] < 1:
            raise UserError(f"{file}: {key}={sizes[key]} must be a positive whole number")


def _folder(source: str, path: Path) -> Model:
    """A Hugging Face folder, by its config.json."""
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"models={source}: the folder has no config.json, so it holds no model to load") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} must hold a mapping")
    positions = config.get("max_position_embeddings")
    known_positions = positions if isinstance(positions, int) else None
    return Model(_short(path.resolve().name), source, known_positions, _sizes(config))


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions of a config.json under the keys of configs/model; empty where one is missing."""
    try:
        heads = config["num_attention_heads"]
        return {
            "hidden_size": config["hidden_size"],
            "intermediate_size": config["intermediate_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": heads,
            "num_kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
            "vocab_size": config["vocab_size"],
        }
    except (KeyError, TypeError, ZeroDivisionError):
        return {}


def _short(name: str) -> str:
    """A lower-case name that is safe in file names."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.rsplit("/", 1)[-1].lower()).strip("-") or "model"
