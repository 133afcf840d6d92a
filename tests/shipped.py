"""What the configs ship, so that a new file is tested by existing. Peers are other engines, and not among it."""

from experiments.compose import load_yaml, names
from experiments.config import PEERS
from variants import load_variant

VARIANT_NAMES = [name for name in names("variant") if load_yaml("variant", name).kind not in PEERS]
VARIANTS = {name: load_variant(name) for name in VARIANT_NAMES}
