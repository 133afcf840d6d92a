"""The one folder that every engine loads: a real checkpoint as it is, anything else written once to the cache."""

import hashlib
import json
import re
import shutil
from pathlib import Path

from engine.loading import save_folder
from engine.loading.export import hf_config
from experiments.errors import UserError
from experiments.fetch import cache_root, locked
from experiments.measuring.session import Session


def checkpoint_folder(session: Session) -> Path:
    """A Hugging Face folder of the session's very weights.

    Written folders are named by their content, under `$FUSEBENCH_CACHE/checkpoints`, and appear there only whole.
    """
    source = Path(session.original.source)
    if (source / "config.json").is_file():
        return source
    folder = cache_root() / "checkpoints" / f"{_short(session.request.model)}-{content_hash(session)}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _write(session, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}; set FUSEBENCH_CACHE to another folder") from error
    return folder


def _short(model: str) -> str:
    """A name that is safe in file names."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(model).stem).strip("-") or "model"


def content_hash(session: Session) -> str:
    """Of the weights and of config.json, which has the dtype."""
    config = json.dumps(hf_config(session.original.config, session.dtype), sort_keys=True)
    return hashlib.sha256(f"{session.weights_hash} {config}".encode()).hexdigest()[:16]


def _write(session: Session, folder: Path) -> None:
    """Into a folder beside it, then into place. Called under the lock: what else is there, a killed process left."""
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    save_folder(session.original, partial, session.dtype)
    partial.rename(folder)
