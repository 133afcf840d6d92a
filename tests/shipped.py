"""What the configs ship, so that a new file is tested by existing. Peers are other engines, and not among it."""

from experiments.validate import own_variants
from variants import load_variant

VARIANT_NAMES = own_variants()
VARIANTS = {name: load_variant(name) for name in VARIANT_NAMES}
