"""What to type to plan a run's cells once more: what was typed, or, of older runs, what their manifests know."""

import re
import shlex
from collections.abc import Iterable
from functools import cache

from experiments.compose import load_yaml, names
from experiments.config import ExperimentConfig, WorkloadConfig

Asked = dict[str, str]


def asked_for(config: ExperimentConfig) -> Asked:
    """Key -> value of what was typed, the last of a key counting."""
    return dict(text.split("=", 1) for text in config.overrides) or _as_known(config)


def as_typed(command: str, asked: Asked) -> str:
    """The command line. Brackets go without quotes."""
    words = (f"{key}={value}" for key, value in asked.items())
    typed = (word if re.fullmatch(r"[][\w./:,=-]+", word) else shlex.quote(word) for word in words)
    return " ".join(["fusebench", command, *typed])


def listed(chosen: Iterable[str]) -> str:
    """Names as a list of them is typed."""
    return f"[{','.join(dict.fromkeys(chosen))}]"


def name_typed(workload: WorkloadConfig) -> str:
    """A workload as one asks for it: a sweep of rates makes one of each."""
    return workload.name.rpartition("-")[0] if workload.rates else workload.name


def _as_known(config: ExperimentConfig) -> Asked:
    experiment, budget_s = _experiment(config), config.protocol.time_budget_s
    asked = {"experiment": experiment} if experiment else {}
    if config.name != experiment:
        asked["name"] = config.name
    asked |= {
        "models": listed(config.models),
        "variants": listed(variant.name for variant in config.variants),
        "workloads": listed(map(name_typed, config.workloads)),
        "protocol.rounds": str(config.protocol.rounds),
    }
    if budget_s is not None:
        asked["protocol.time_budget_s"] = f"{budget_s:g}"
    if config.seed:
        asked["seed"] = str(config.seed)
    return asked


def _experiment(config: ExperimentConfig) -> str:
    """The YAML file that it was made from: a run under another name kept its question. Empty where there is none."""
    questions = _questions()
    alike = [name for name, question in questions.items() if question == config.question]
    own = [config.name] if config.name in (alike or questions) else []
    return next(iter([*own, *alike]), "")


@cache
def _questions() -> dict[str, str]:
    return {name: str(load_yaml("experiment", name).get("question")) for name in names("experiment")}
