"""Model shapes by name: the YAML files under configs/model."""

from dataclasses import MISSING, Field, fields
from importlib.resources import files
from typing import Any, get_args, get_type_hints

import yaml

from engine.config import ModelConfig, RopeConfig
from engine.errors import ModelError


def model_names() -> list[str]:
    """Names that `load_model_yaml` knows, sorted."""
    folder = files("configs") / "model"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_model_yaml(name: str) -> ModelConfig:
    """The model of configs/model/<name>.yaml. Unknown and missing keys and wrong types are a ModelError."""
    if name not in model_names():
        raise ModelError(f"model={name!r} is not one of {', '.join(model_names())}")
    raw = yaml.safe_load((files("configs") / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    source = f"configs/model/{name}.yaml"
    if not isinstance(raw, dict) or raw.pop("name", None) != name:
        raise ModelError(f"{source}: `name` must be {name}, as the file is called")
    return model_config_from_mapping(raw, source)


def model_config_from_mapping(raw: dict[str, Any], source: str) -> ModelConfig:
    """Build a ModelConfig from its own field names, `rope` nested; strict in keys and types."""
    values = dict(raw)
    rope = values.pop("rope", {})
    if not isinstance(rope, dict):
        raise ModelError(f"{source}: rope must be a mapping, not {rope!r}")
    if isinstance(values.get("eos_token_ids"), list):
        values["eos_token_ids"] = tuple(values["eos_token_ids"])
    _check_keys(ModelConfig, values, source)
    _check_keys(RopeConfig, rope, f"{source}: rope")
    heads, kv_heads = values["num_heads"], values["num_kv_heads"]
    if kv_heads < 1 or heads % kv_heads:
        raise ModelError(f"{source}: num_heads={heads} is no multiple of num_kv_heads={kv_heads}")
    return ModelConfig(**values, rope=RopeConfig(**rope))


def _check_keys(cls: type[ModelConfig] | type[RopeConfig], values: dict[str, Any], source: str) -> None:
    known = {field.name: field for field in fields(cls) if field.name != "rope"}
    hints = get_type_hints(cls)
    if unknown := sorted(values.keys() - known.keys()):
        raise ModelError(f"{source}: unknown key {unknown[0]}; the keys are {', '.join(known)}")
    if missing := [name for name, field in known.items() if _is_required(field) and name not in values]:
        raise ModelError(f"{source}: {missing[0]} is missing")
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise ModelError(f"{source}: {key}={value!r} is not of type {hints[key]}")


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _fits(value: object, hint: Any) -> bool:
    """Whether a YAML value fits a field of these two dataclasses; a float field takes an integer too."""
    if hint == tuple[int, ...]:
        return isinstance(value, tuple) and all(type(item) is int for item in value)
    options = get_args(hint) or (hint,)
    if type(value) is int and float in options:
        return True
    return any(type(value) is option if isinstance(option, type) else value == option for option in options)
