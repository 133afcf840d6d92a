"""What the reader sees first: the question, the headline numbers, whether the answers are right, machine and code."""

from dataclasses import dataclass

from experiments.config import BASELINE
from experiments.records import Status
from experiments.reporting.formats import interval, number, percent, points_of, ratio, revision, tiny
from experiments.reporting.headline import (
    Aggregate,
    Correctness,
    aggregates,
    claim_counts,
    correctness,
    lead_of,
)
from experiments.reporting.rows import Analysis
from experiments.reporting.shards import mixed_machines, places

TWIN_NOTE = (
    "Twin run: on this machine the kernels ran as their plain-PyTorch twins. The pipeline and the answers are real; "
    "the times say nothing about fused kernels, and no speed is claimed."
)


@dataclass(frozen=True)
class Card:
    """One headline number; `counts` are the verdicts of its points, empty where no claim is made."""

    title: str
    value: str
    bounds: str
    note: str
    counts: dict[str, int]


@dataclass(frozen=True)
class Fact:
    """One line of the strip under the cards. `tone` is `good`, `bad`, `warn` or empty."""

    label: str
    text: str
    tone: str = ""


@dataclass(frozen=True)
class FirstScreen:
    """The whole first screen."""

    question: str
    lead: str
    cards: tuple[Card, ...]
    facts: tuple[Fact, ...]
    twin_note: str


def first_screen(analysis: Analysis) -> FirstScreen:
    """The first screen of a run."""
    info, lead = analysis.run.info, lead_of(analysis.run.variants)
    mine = [a for a in aggregates(analysis) if a.variant == lead]
    facts = (
        *_verdicts(analysis, lead),
        _answers(correctness(analysis)),
        *_control(analysis),
        _cells(analysis),
        *_gpu_state(analysis),
        *_below_floor(analysis),
        _machine(analysis),
        *_shards(analysis),
        _code(analysis),
    )
    return FirstScreen(
        question=info.question or f"What was measured in {info.experiment or 'this run'}?",
        lead=_lead_sentence(analysis, lead),
        cards=tuple(_card(a, analysis.run.is_twin) for a in mine),
        facts=facts,
        twin_note=TWIN_NOTE if analysis.run.is_twin else "",
    )


def _lead_sentence(analysis: Analysis, lead: str | None) -> str:
    if not analysis.run.results:
        return "Nothing was measured: this run has no cells."
    if lead is None:
        return f"Only {BASELINE} was measured, so there is nothing to compare it with."
    if BASELINE not in analysis.run.variants:
        return f"{BASELINE} is not in this run, so there is nothing to compare {lead} with."
    label = " as twins" if analysis.run.is_twin else ""
    return (
        f"{lead} against {BASELINE}{label}: geometric mean of the paired speed-up over all points, in the rounds that "
        "all of them have, 95 % interval"
    )


def _card(a: Aggregate, is_twin: bool) -> Card:
    title = f"{a.model} {a.workload}"
    counts = {} if is_twin else a.claims
    if a.speedup is None:
        return Card(title, "no value", "", f"none of {points_of(a.num_points)} could be compared", counts)
    points = points_of(a.num_ok) if a.num_ok == a.num_points else f"{a.num_ok} of {points_of(a.num_points)}"
    span = f"{ratio(a.slowest.speedup)} to {ratio(a.fastest.speedup)}" if a.slowest and a.fastest else ""
    note = points if a.num_points == 1 else f"{points}, {span}"
    return Card(title, ratio(a.speedup.value), _bounds(a), note, counts)


def _bounds(a: Aggregate) -> str:
    if a.speedup is None:
        return ""
    if a.speedup.low is None:
        return f"no interval: {a.speedup.n} round{'s' * (a.speedup.n != 1)}"
    return interval(a.speedup.low, a.speedup.high)


def _verdicts(analysis: Analysis, lead: str | None) -> list[Fact]:
    if lead is None:
        return []
    counts = claim_counts([r for r in analysis.primary if r.variant == lead])
    text = f"{lead}: " + ", ".join(f"{amount} {name}" for name, amount in counts.items())
    if analysis.run.is_twin:
        return [Fact("Verdicts", f"{text} (twin timings, no claim)", "warn")]
    tone = "bad" if counts["slower"] else ("good" if counts["faster"] else "")
    return [Fact("Verdicts", text, tone)]


def _answers(checked: list[Correctness]) -> Fact:
    label = "Answers"
    wrong = [c for c in checked if not c.ok and c.verdict is not None]
    if wrong:
        return Fact(label, "wrong: " + "; ".join(f"{c.variant} on {c.model}{_why(c)}" for c in wrong), "bad")
    verdicts = [(c, c.verdict) for c in checked if c.verdict is not None]
    if not verdicts:
        return Fact(label, "unchecked: no cell carries a verdict", "warn" if checked else "")
    agreement = min(v.top1_agreement for _, v in verdicts)
    passed = "the only check passes" if len(verdicts) == 1 else f"all {len(verdicts)} checks pass"
    text = f"{passed}: top-1 agreement with the fp32 reference at least {percent(agreement)}"
    divergences = [(v.kl_max, c) for c, v in verdicts if v.kl_max is not None]
    if divergences:
        kl, at = max(divergences, key=lambda found: found[0])
        text += f", worst KL {tiny(kl)} nats ({at.variant}, {at.model})"
    unchecked = [f"{c.variant} on {c.model}" for c in checked if c.verdict is None]
    if unchecked:
        return Fact(label, f"{text}; unchecked: {', '.join(unchecked)}", "warn")
    return Fact(label, text, "good")


def _why(c: Correctness) -> str:
    return f" ({c.verdict.reason or 'its figures are not finite'})" if c.verdict else ""


def _control(analysis: Analysis) -> list[Fact]:
    """The baseline against itself: any verdict but `same` or `unresolved` would be a false alarm."""
    controls = [name for name in analysis.run.info.controls if name in analysis.run.variants]
    if not controls:
        return [Fact("A/A control", "none in this run")]
    facts = []
    for name in controls:
        rows = [r for r in analysis.primary if r.variant == name and r.speedup is not None]
        counts = claim_counts(rows)
        false = counts["faster"] + counts["slower"]
        ends = sorted(r.speedup or 0.0 for r in rows)
        span = f", between {ratio(ends[0])} and {ratio(ends[-1])}" if ends else ""
        text = f"{name} is the baseline against itself: {false} of {points_of(len(rows))} called different{span}"
        if false and not analysis.run.info.protocol.restart_rounds:
            text += (
                "; fresh workers in every round (protocol.restart_rounds=1) would tell a process's luck from an effect"
            )
        facts.append(Fact("A/A control", text, "bad" if false else "good"))
    return facts


def _cells(analysis: Analysis) -> Fact:
    counts = analysis.run.status_counts()
    others = [f"{counts[s.value]} {s.value}" for s in Status if s is not Status.OK and counts[s.value]]
    settled = [f"{counts['settled']:,} not needed (settled early)"] if counts["settled"] else []
    text = ", ".join([f"{counts['planned']:,} planned", f"{counts['ok']:,} ok", *settled, *others])
    damaged = len(analysis.run.problems)
    if damaged:
        text += f"; {damaged} problem{'s' * (damaged != 1)} in reading them"
    return Fact("Cells", text, "warn" if others or damaged else "")


def _gpu_state(analysis: Analysis) -> list[Fact]:
    """Was the GPU itself, and ours alone?"""
    measured = [r for r in analysis.run.results if r.status is Status.OK]
    if analysis.run.info.device != "cuda" or not measured:
        return []
    if not any(r.windows for r in measured):
        return [Fact("GPU state", "no clocks were read beside the cells: NVML was not there", "warn")]
    again = sum(bool(r.set_aside) for r in measured)
    flagged = sum(bool(r.flags) for r in measured)
    shared = sum(bool(r.other_processes) for r in measured)
    text = (
        f"{flagged} of {len(measured):,} cells throttled or off their usual clock"
        + (f", {again} measured again for it" if again else "")
        + (f"; another process was on the GPU in {shared} cells" if shared else "")
    )
    return [Fact("GPU state", text, "warn" if flagged or shared else "good")]


def _below_floor(analysis: Analysis) -> list[Fact]:
    """Faster than physics means that a ceiling was measured too low, or that the work was not done."""
    impossible = [r for r in analysis.primary if r.share_of_floor is not None and r.share_of_floor > 1.02]
    if not impossible:
        return []
    worst = max(impossible, key=lambda r: r.share_of_floor or 0.0)
    text = (
        f"{len(impossible)} rows are faster than their floor (up to {percent(worst.share_of_floor)}, {worst.variant}): "
        "a ceiling was measured too low, or work was left out"
    )
    return [Fact("Floor", text, "bad")]


def _machine(analysis: Analysis) -> Fact:
    info = analysis.run.info
    parts = [info.gpu or f"no GPU: {info.cpu or 'CPU'}", info.dtype]
    if info.ceilings:
        read, flop = info.ceilings.read_bytes_per_s / 1e12, info.ceilings.bf16_flop_per_s / 1e12
        parts.append(f"reads {number(read, 3)} TB/s, {number(flop, 3)} TFLOP/s measured in this run")
    else:
        parts.append("no ceilings measured, so no floor is claimed")
    return Fact("Machine", ", ".join(p for p in parts if p))


def _shards(analysis: Analysis) -> list[Fact]:
    """Over how many processes the run was spread, and what of that may have told on the times."""
    found = places(analysis.run)
    if not found:
        return []
    nodes = sorted({p.record.node for p in found})
    text = f"{len(found)} on {', '.join(nodes)}"
    crowded = [node for node in nodes if any(p.beside for p in found if p.record.node == node)]
    if crowded:
        text += f"; side by side on {', '.join(crowded)}, sharing its cores, memory and PCIe"
    types = sorted(set(mixed_machines(analysis.run).values()))
    if types:
        text += f"; on unlike machines ({', '.join(types)}): compare variants at a point, not points with each other"
    return [Fact("Shards", text, "warn" if crowded or types else "")]


def _code(analysis: Analysis) -> Fact:
    info = analysis.run.info
    text = f"{revision(info.commit)}, run {info.run_id}"
    if info.created:
        text += f", {info.created}"
    return Fact("Code", f"{text}; with uncommitted changes", "warn") if info.dirty else Fact("Code", text)
