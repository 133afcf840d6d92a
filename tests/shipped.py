"""What the configs ship, so that a new file is tested by existing."""

from importlib.resources import files

from variants import load_variant

VARIANT_NAMES = sorted(
    file.name.removesuffix(".yaml") for file in (files("configs") / "variant").iterdir() if file.name.endswith(".yaml")
)
VARIANTS = {name: load_variant(name) for name in VARIANT_NAMES}
