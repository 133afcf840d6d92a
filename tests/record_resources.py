"""Compile every kernel of the ahead-of-time tests and keep what it takes: `python -m tests.record_resources`."""

import json
from importlib.metadata import version

from experiments.environment import code
from tests.engine.kernels.test_aot import CASES as BASELINE_CASES
from tests.engine.kernels.test_prefill_sm90 import CASES as HOPPER_CASES
from tests.kernel_aot import RECORD, compile_cases, figures
from tests.variants.kernels.test_aot import CASES as FUSED_CASES
from tests.variants.kernels.test_decode_qkv_attention_sm90 import CASES as ATTENTION_CASES
from tests.variants.kernels.test_normed_product_sm90 import CASES as MANY_ROWS_CASES
from tests.variants.kernels.test_normed_qkv_sm90 import CASES as WHOLE_HEADS_CASES


def main() -> None:
    """Write the record anew."""
    fused = FUSED_CASES + MANY_ROWS_CASES + WHOLE_HEADS_CASES + ATTENTION_CASES
    groups = {"baseline": BASELINE_CASES + HOPPER_CASES, "fused": fused}
    rows = {name: list(map(figures, compile_cases(cases).values())) for name, cases in groups.items()}
    record = {"target": "sm_90", "triton": version("triton"), "commit": code().commit, **rows}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
