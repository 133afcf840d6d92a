"""From YAML files and command-line overrides to one `ExperimentConfig`. Hydra composes here and stops here.

Variants and workloads are lists of names. A name is a file under configs/, or an entry of the `variant` or `workload`
mapping, which may extend a file; either way the mapping's changes are merged over the file's values.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from experiments.config import (
    REQUEST_KINDS,
    ClusterConfig,
    ExperimentConfig,
    ProtocolConfig,
    VariantConfig,
    WorkloadConfig,
)
from experiments.errors import UserError

T = TypeVar("T")

# Mappings that take any key: Hydra would want a `+` before the first change to an entry.
_OPEN = ("variant.", "workload.", "cluster.sbatch.")
# Its YAMLs state only the keys that mean something there.
_PARTIAL = ("cluster.",)
# Keys that choose a file.
_GROUPS = ("experiment", "protocol", "cluster")
_LISTS = ("models", "variants", "workloads", "batches", "lengths", "devices")


@dataclass(frozen=True)
class Asked:
    """config.yaml's own keys, as typed: names not yet looked up, `protocol` and `cluster` already chosen by Hydra."""

    name: str
    question: str
    models: list[str]
    variants: list[str]
    workloads: list[str]
    variant: dict[str, Any]
    workload: dict[str, Any]
    protocol: dict[str, Any]
    batches: list[int] | None
    lengths: list[int] | None
    device: str
    dtype: str
    weights: str
    seed: int
    results_dir: str
    reports_dir: str
    dry_run: bool
    resume: str | None
    cluster: dict[str, Any]
    devices: list[int]


def compose(overrides: Sequence[str]) -> ExperimentConfig:
    """The experiment that the overrides ask for. UserError names the key or the file at fault."""
    composed = _hydra(overrides)
    asked = _build(Asked, "", composed)
    for key in ("models", "variants", "workloads"):
        if not all(isinstance(name, str) for name in getattr(asked, key)):
            raise UserError(f"{key} must be a list of names, not {getattr(asked, key)}")
    for key in ("batches", "lengths"):
        if getattr(asked, key) == []:
            raise UserError(f"{key}=[] is empty: name at least one, or {key}=null for those of each workload")
    for group in ("variant", "workload"):
        _check_used(overrides, group, getattr(asked, f"{group}s"))
    kept = {field.name for field in dataclasses.fields(ExperimentConfig)} - {
        "variants",
        "workloads",
        "protocol",
        "cluster",
        "overrides",
    }
    return ExperimentConfig(
        variants=[_part("variant", VariantConfig, name, asked.variant) for name in asked.variants],
        workloads=[workload for name in asked.workloads for workload in _workloads(name, asked)],
        protocol=_build(ProtocolConfig, "protocol.", composed.protocol),
        cluster=_build(ClusterConfig, "cluster.", composed.cluster),
        overrides=list(overrides),
        **{name: getattr(asked, name) for name in kept},
    )


def names(group: str) -> list[str]:
    """The files of a config group, without their suffix."""
    folder = files("configs") / group
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def config_file(group: str, name: str) -> Traversable:
    """The YAML file of that name; UserError lists what there is."""
    if name not in names(group):
        raise UserError(_unknown(group, name))
    return files("configs") / group / f"{name}.yaml"


def load_yaml(group: str, name: str) -> DictConfig:
    """The contents of configs/<group>/<name>.yaml."""
    file = f"configs/{group}/{name}.yaml"
    try:
        loaded = OmegaConf.create(config_file(group, name).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(_no_yaml(file, error)) from None
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{file} must be a mapping")
    return loaded


def _no_yaml(file: str, error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What is wrong with the file, and where."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{file} cannot be read: {error}"
    return f"{file}, line {mark.line + 1}, is no YAML: {getattr(error, 'problem', error)}"


def _unknown(group: str, name: str) -> str:
    return f"{group} {name!r} is not known{suggest(name, names(group))} (there are {', '.join(names(group))})"


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` where X is near enough, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _hydra(overrides: Sequence[str]) -> DictConfig:
    """Compose config.yaml; nothing is written and no logger is set up."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException, OverrideParseException

    prepared = [_prepare(text) for text in overrides]
    try:
        with initialize_config_module("configs", version_base="1.3"):
            composed: DictConfig = hydra_compose("config", overrides=prepared)
            return composed
    except OverrideParseException as error:
        wrong = error.override.removeprefix("++")
        raise UserError(f"{wrong!r} cannot be read; lists are [a,b], text with commas is quoted twice") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(str(error))) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(_no_yaml(mark.name if mark else "a file under configs/", error)) from None


def _prepare(text: str) -> str:
    """One override as Hydra wants it, its key checked. A lone name is a list of one."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[\w./-]+", key):
        raise UserError(f"{text!r} is not of the form key=value; `--help` lists the keys")
    if key not in _known_keys() and not key.startswith(_OPEN):
        raise UserError(f"{key} is not a key of an experiment{suggest(key, _known_keys())}")
    if key in _GROUPS and not re.fullmatch(r"(?!null$)[\w.-]+", value):
        raise UserError(f"{key}={value} must be one of {', '.join(names(key))}")
    if key in _LISTS and value != "null" and not value.startswith("["):
        value = f"[{value}]"
    return f"++{text}" if key.startswith((*_OPEN, *_PARTIAL)) else f"{key}={value}"


def _check_used(overrides: Sequence[str], group: str, asked: Sequence[str]) -> None:
    """A change typed for what is not measured would silently do nothing. Those in an experiment's file may."""
    for key in (text.partition("=")[0] for text in overrides):
        if key.startswith(f"{group}.") and (name := key.split(".")[1]) not in asked:
            mend = "; add it" if name in names(group) else suggest(name, asked)
            raise UserError(f"{key}: {name} is not among {group}s=[{', '.join(asked)}]{mend}")


def _explain(message: str) -> str:
    """One line of what Hydra says in many."""
    if match := re.search(r"Could not find '(\w+)/([^']+)'", message):
        return _unknown(match[1], match[2])
    return message.splitlines()[0]


def _known_keys() -> list[str]:
    top = [field.name for field in dataclasses.fields(Asked) if f"{field.name}." not in _OPEN]
    parts = {"protocol": ProtocolConfig, "cluster": ClusterConfig}
    inside = [f"{part}.{field.name}" for part, kind in parts.items() for field in dataclasses.fields(kind)]
    return [*top, "experiment", *inside]


def _part(group: str, kind: type[T], name: str, all_changes: Mapping[str, Any]) -> T:
    """The variant or workload called `name`: its file, or the file that it extends, with the changes made to it."""
    changes = all_changes.get(name) or {}
    if not isinstance(changes, dict):
        raise UserError(f"{group}.{name} must be a mapping of changes, not {changes!r}")
    base_name = str(changes.get("extends", name))
    base = load_yaml(group, base_name)
    known, switches = list(base.get("switches") or {}), changes.get("switches") or {}
    if not isinstance(switches, dict):
        raise UserError(f"{group}.{name}.switches must be a mapping of switches to true or false, not {switches!r}")
    for switch in switches:
        if switch not in known:
            has = ", ".join(known) or "none"
            raise UserError(
                f"{group}.{name} has no switch {switch!r}{suggest(switch, known)} "
                f"(configs/{group}/{base_name}.yaml names {has})"
            )
    changes = {key: value for key, value in changes.items() if key != "extends"}
    return _build(kind, f"{group}.{name}.", base, changes, {"name": name})


def _workloads(name: str, asked: Asked) -> list[WorkloadConfig]:
    """The workload called `name`, or one for each of its rates: NAME-2rps, NAME-0_5rps."""
    workload = _sized(_part("workload", WorkloadConfig, name, asked.workload), asked)
    known = sorted({*names("variant"), *asked.variant})
    for variant in workload.skip:
        # One that this sweep leaves out may stand there; one that there is not would silently do nothing.
        if variant not in known:
            raise UserError(f"workload.{name}.skip: there is no variant {variant!r}{suggest(variant, known)}")
    if not workload.rates:
        return [workload]
    return [dataclasses.replace(workload, name=f"{name}-{_in_name(rate)}rps", rates=[rate]) for rate in workload.rates]


def _in_name(rate: float) -> str:
    """A number as file names take it: 2, 0_5."""
    return f"{rate:.6f}".rstrip("0").rstrip(".").replace(".", "_")


def _sized(workload: WorkloadConfig, asked: Asked) -> WorkloadConfig:
    """The workload with the batches and lengths that were asked for over its own, the other of the two kept."""
    if workload.kind in REQUEST_KINDS or (asked.batches is None and asked.lengths is None):
        return workload
    batches = sorted({batch for batch, _ in workload.pairs()}) if asked.batches is None else asked.batches
    lengths = sorted({length for _, length in workload.pairs()}) if asked.lengths is None else asked.lengths
    return dataclasses.replace(workload, batches=batches, lengths=lengths, points=[])


def _build(kind: type[T], where: str, *layers: Any) -> T:
    """A value of dataclass `kind` from layers of mappings, the last one winning."""
    schema = OmegaConf.structured(kind)
    _make_writable(schema)
    try:
        built: Any = OmegaConf.to_object(OmegaConf.merge(schema, *layers))
    except OmegaConfBaseException as error:
        raise UserError(_misfit(kind, where, error)) from error
    return built  # type: ignore[no-any-return]


def _misfit(kind: type, where: str, error: OmegaConfBaseException) -> str:
    """What does not fit the dataclass, in one line."""
    key = str(error.full_key)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        known = [field.name for field in dataclasses.fields(kind)]
        return f"{where}{key} is not a key{suggest(key, known)} (there are {', '.join(known)})"
    if isinstance(error, MissingMandatoryValue):
        return f"{where}{key} has no value"
    return f"{where}{key}: {str(error).splitlines()[0]}"


def _make_writable(node: DictConfig) -> None:
    """OmegaConf takes frozen dataclasses for read-only nodes; here they are only the schema to merge into."""
    OmegaConf.set_readonly(node, False)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_missing():
            _make_writable(child)
