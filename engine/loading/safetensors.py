"""Weights from a Hugging Face folder: one safetensors file, or shards listed by an index."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.config import ModelConfig
from engine.errors import ModelError
from engine.loading.names import EMBED, LM_HEAD, Allocation, allocate, check_tensors
from engine.parallel.ranks import ALONE, Ranks
from engine.weights import ModelWeights

INDEX = "model.safetensors.index.json"
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


def has_weights(folder: Path) -> bool:
    """Whether the folder holds safetensors or an index of them."""
    return (folder / INDEX).exists() or any(folder.glob("*.safetensors"))


def load_safetensors(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: str | torch.device, ranks: Ranks = ALONE
) -> ModelWeights:
    """Stream the folder's tensors, one at a time, into one rank's packed weights of `dtype` on `device`.

    Raises ModelError for a damaged file and for every missing, surplus or misshapen tensor, before any is copied.
    """
    with ExitStack() as stack:
        files = {path: stack.enter_context(_open(path)) for path in _weight_files(folder)}
        owner = _tensor_owners(files)
        expected = allocate(config, dtype, "meta").slots
        check_tensors(
            expected, {name: _float_shape(files[path], path, name) for name, path in owner.items()}, str(folder)
        )
        allocation = allocate(config, dtype, device, ranks)
        allocation.fill(lambda name: _read(files[owner[name]], owner[name], name))
        if config.tie_word_embeddings and LM_HEAD in owner:
            _check_tied_head(allocation, files[owner[LM_HEAD]], owner[LM_HEAD])
        return allocation.weights


def _weight_files(folder: Path) -> list[Path]:
    index_path = folder / INDEX
    if not index_path.exists():
        single = folder / "model.safetensors"
        return [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index_path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index_path} is not a valid index of shards ({error}); download it again") from error
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(f"{index_path} lists {absent[0]}, which is not in the folder; download it too")
    return [folder / name for name in names]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is truncated or damaged ({error}); download it again") from error


def _tensor_owners(files: Mapping[Path, Any]) -> dict[str, Path]:
    owner: dict[str, Path] = {}
    for path, file in files.items():
        for name in file.keys():
            if name in owner:
                raise ModelError(
                    f"{name} is in both {owner[name]} and {path.name}; remove the file that does not belong"
                )
            owner[name] = path
    return owner


def _float_shape(file: Any, path: Path, name: str) -> tuple[int, ...]:
    header = file.get_slice(name)
    if header.get_dtype() not in FLOAT_DTYPES:
        raise ModelError(
            f"{path}: {name} is stored as {header.get_dtype()}; only {', '.join(FLOAT_DTYPES)} are read, "
            "so take a checkpoint that is not quantized"
        )
    return tuple(header.get_shape())


def _read(file: Any, path: Path, name: str) -> torch.Tensor:
    try:
        tensor: torch.Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: {name} cannot be read ({error}); download the file again") from error
    return tensor


def _check_tied_head(allocation: Allocation, file: Any, path: Path) -> None:
    embed_VH = allocation.slots[EMBED]
    head_VH = _read(file, path, LM_HEAD).to(embed_VH)
    if not torch.equal(head_VH, embed_VH):
        raise ModelError(
            f"{path}: {LM_HEAD} differs from {EMBED} although the config ties them; set tie_word_embeddings to false"
        )
