"""How the numbers were made, in words: the same text on the page and in report.md."""

from experiments import plain
from experiments.reporting.again import as_typed
from experiments.reporting.formats import short
from experiments.reporting.info import RunInfo
from experiments.reporting.rows import Analysis
from experiments.stats import EQUIVALENCE_MARGIN, FAMILY_ALPHA, MIN_ROUNDS


def methods(analysis: Analysis) -> list[tuple[str, str]]:
    """(heading, paragraph) pairs."""
    info = analysis.run.info
    apart = ""
    if info.by_process:
        names = ", ".join(info.by_process)
        apart = (
            f" The engines of {names} do not fit on the device together: each variant and round had a fresh process."
        )
    if every := info.protocol.restart_rounds:
        apart += f" After each {every} rounds all of them were replaced by fresh ones."
    if info.shards:
        apart += (
            f" The points were spread over {len(info.shards)} shards, each with its own processes and GPUs and all "
            "variants and rounds of its points; the table of shards says where, and which ran side by side."
        )
    most = "" if info.looks.first == info.looks.last else "up to "
    rounds = f"{most}{analysis.run.num_rounds} round{'s' * (analysis.run.num_rounds != 1)}"
    protocol = ", ".join(
        f"{key.replace('_', ' ')} {value:g}" for key, value in plain.encode(info.protocol).items() if value is not None
    )
    return [
        (
            "Protocol",
            f"Every variant runs in its own warm process. Cells go to them interleaved, in {rounds} of balanced "
            "random order, and one process at a time uses the device. Each cell is warmed up at its exact shape; a "
            "cell in which anything was compiled or captured while the clock ran is invalid. A variant whose answers "
            f"are wrong is not timed.{apart}" + (f" Settings: {protocol}." if protocol else ""),
        ),
        (
            "Statistics",
            "A cell's value in a round is the median of its samples. A variant is paired with the baseline of the "
            "same round; the speed-up is the median of these ratios, above 1 is faster. Intervals are Student's, 95 %, "
            f"on the logarithm of the ratios and take at least {MIN_ROUNDS} rounds; a bootstrap of so few rounds would "
            "promise more than it holds. A row with any failed round has no value.",
        ),
        (
            "Verdicts",
            f"same: the whole interval lies within {100 * EQUIVALENCE_MARGIN:.0f} % of parity. faster, slower: the "
            f"paired t test, corrected by Holm for all comparisons of the run, stays below {100 * FAMILY_ALPHA:.0f} %, "
            f"so the chance of even one false claim in the whole run is at most that.{_looks(info)} unresolved: "
            "neither; more rounds would tell.",
        ),
        (
            "Floors",
            "Least bytes and FLOP of the answer, over the read bandwidth and the bf16 rate measured in the same run. "
            "Activations inside a step are taken never to leave the chip, so the floor is a bound, not a target.",
        ),
        (
            "Answers",
            "Before timing, each variant decodes greedily, and its logits at forced positions are compared with the "
            "fp32 reference on the same weights: KL divergence, top-1 agreement, first divergence.",
        ),
    ]


def _looks(info: RunInfo) -> str:
    looks = info.looks
    if looks.first == looks.last:
        return ""
    return (
        f" A point may end after {looks.first} to {looks.last} rounds, once every verdict there is clear and every "
        f"paired log speed-up known to +-{info.protocol.target_ci:g}; the test pays for each of these looks, with "
        "half of its error at the last and the rest shared by those before."
    )


def commands(analysis: Analysis) -> list[str]:
    """How to make this run and this report again."""
    info = analysis.run.info
    checkout = [f"git checkout {short(info.commit)}"] if info.commit and info.commit != "none" else []
    return [
        *checkout,
        as_typed("sweep", info.asked),
        f"fusebench report experiment={info.experiment} run={info.run_id}",
    ]
