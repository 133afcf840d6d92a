"""The variants: one module per way to differ from the baseline, each with `SWITCHES` and `build`.

`build(name, switches, runtime)` returns an `engine.Variant`; `SWITCHES` maps each rung of its ladder to its default.
"""

import importlib
from collections.abc import Mapping
from importlib import resources

import yaml

from engine import Runtime, UserError, Variant

KINDS = ("baseline", "compiled", "folded", "fused", "norm_linear")


def build_variant(name: str, kind: str, switches: Mapping[str, bool], runtime: Runtime) -> Variant:
    """The variant of a config: `variants/<kind>.py` with some of its switches set."""
    if kind not in KINDS:
        raise UserError(f"variant {name}: kind={kind} is not one of {', '.join(KINDS)}")
    module = importlib.import_module(f"variants.{kind}")
    unknown = sorted(set(switches) - set(module.SWITCHES))
    if unknown:
        known = ", ".join(module.SWITCHES) or "none"
        raise UserError(f"variant {name}: unknown switch {unknown[0]}; {kind} has {known}")
    variant: Variant = module.build(name, {**module.SWITCHES, **switches}, runtime)
    return variant


def load_variant(name: str) -> Variant:
    """A variant by the name of its file under configs/variant."""
    file = resources.files("configs") / "variant" / f"{name}.yaml"
    if not file.is_file():
        names = sorted(
            f.name[:-5] for f in (resources.files("configs") / "variant").iterdir() if f.name[-5:] == ".yaml"
        )
        raise UserError(f"no variant named {name!r}; there are {', '.join(names)}")
    config = yaml.safe_load(file.read_text()) or {}
    return build_variant(name, config["kind"], config.get("switches", {}), Runtime(**config.get("runtime", {})))
