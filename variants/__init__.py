"""The variants: one module per way to differ from the baseline, each with `SWITCHES` and `build`.

`build(name, switches, runtime)` returns an `engine.Variant`; `SWITCHES` maps each rung of its ladder to its default,
`KERNELS` to the kernel that proves it in a trace. A rung calls `ranges.rung` where it takes a piece of work.
"""

import dataclasses
import importlib
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from engine import Runtime, UserError, Variant


def kinds() -> list[str]:
    """Modules of this package that build variants, by their text: a broken one is nobody else's affair."""
    builds = re.compile(r"^def build\(", re.MULTILINE)
    return [name for name, file in _files().items() if builds.search(file.read_text(encoding="utf-8"))]


def build_variant(name: str, kind: str, switches: Mapping[str, bool], runtime: Runtime) -> Variant:
    """The variant of a config: `variants/<kind>.py` with some of its switches set."""
    if kind not in _files():
        raise UserError(f"variant {name}: kind={kind} is not one of {', '.join(kinds())}")
    try:
        module = importlib.import_module(f"variants.{kind}")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"variant {name}: variants/{kind}.py cannot be imported: {reason}") from error
    if not hasattr(module, "build"):
        raise UserError(f"variant {name}: variants/{kind}.py has no build; kinds are {', '.join(kinds())}")
    for switch, value in switches.items():
        if switch not in module.SWITCHES:
            known = ", ".join(module.SWITCHES) or "none"
            raise UserError(f"variant {name}: unknown switch {switch}; {kind} has {known}")
        if not isinstance(value, bool):
            raise UserError(f"variant {name}: {switch}={value!r} must be true or false")
    variant: Variant = module.build(name, {**module.SWITCHES, **switches}, runtime)
    return variant


def load_variant(name: str) -> Variant:
    """A variant by the name of its file under configs/variant."""
    folder = resources.files("configs") / "variant"
    names = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    if name not in names:
        raise UserError(f"no variant named {name!r}; there are {', '.join(names)}")
    config = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    where = f"configs/variant/{name}.yaml"
    _check_keys(where, config, {"kind", "switches", "runtime"})
    if "kind" not in config:
        raise UserError(f"{where}: kind is missing; there are {', '.join(kinds())}")
    runtime = config.get("runtime") or {}
    _check_keys(f"{where}: runtime", runtime, {field.name for field in dataclasses.fields(Runtime)})
    return build_variant(name, config["kind"], config.get("switches") or {}, Runtime(**runtime))


def _files() -> dict[str, Path]:
    """Every module of this package."""
    files = {file.stem: file for folder in __path__ for file in Path(folder).glob("*.py")}
    return {name: files[name] for name in sorted(files) if name != "__init__"}


def _check_keys(where: str, mapping: Any, known: set[str]) -> None:
    """Every key is known."""
    if not isinstance(mapping, dict):
        raise UserError(f"{where}: must be a mapping of {', '.join(sorted(known))}")
    if unknown := sorted(mapping.keys() - known):
        raise UserError(f"{where}: unknown key {unknown[0]}; there are {', '.join(sorted(known))}")
