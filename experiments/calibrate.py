"""`fusebench calibrate`: is the analysis right as often as it says? Sweeps with a known truth, and what it made of it.

fusebench calibrate                      simulated sweeps: equal variants and slow-downs of 0.5, 1, 2 and 5 %
fusebench calibrate sweeps=20 real=3     fewer of them, and real ones of a busy loop, with this machine's own noise

    sweeps=N    simulated sweeps of each kind (200)
    real=N      real sweeps of a busy loop, each of them some ten seconds (0)
    seed=N      of the draws and of the orders (0)
    out=FILE    where the figures go (results/calibration.json)

The protocol is configs/protocol/full.yaml, once with all its rounds and once as it is, ending points early. Needs
neither GPU nor torch.
"""

import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from experiments import plain
from experiments.busy_worker import slow_down
from experiments.calibration import EFFECTS, NOISES, Calibration, compared, judge, simulate
from experiments.command_line import run_or_help
from experiments.compose import compose
from experiments.config import BASELINE, ExperimentConfig, ProtocolConfig, VariantConfig, WorkloadConfig
from experiments.durable import insist_on_place, write_figures
from experiments.environment import code, machine
from experiments.errors import UserError
from experiments.manifest import new_manifest
from experiments.options import parse_options
from experiments.progress import make_display
from experiments.reporting.calibrated import calibration_table
from experiments.reporting.formats import to_markdown
from experiments.reporting.rows import Analysis, analyse
from experiments.reporting.run import load_run
from experiments.store import create_run
from experiments.sweep import Sweep, prepare

SCHEMA = 1
BUSY_WORKER = (sys.executable, "-P", "-m", "experiments.busy_worker")
BUSY_VARIANTS = (BASELINE, "control", "slow_1", "slow_2", "slow_5")
# Without restarts each variant's process, and its luck, lasts for the whole sweep.
REAL_NOISES = {"this machine, warm processes": None, "this machine, restarts": 1}


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    sweeps: int = 200
    real: int = 0
    seed: int = 0
    out: str = "results/calibration.json"


def parse(arguments: Sequence[str]) -> Options:
    """Options from the command line; UserError names what is unknown or no number."""
    options = parse_options(Options, "calibrate", arguments)
    if not options.sweeps and not options.real:
        raise UserError("calibrate: sweeps=0 and real=0 leave nothing to judge; ask for some of either")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate; returns the exit code."""
    return run_or_help(argv, __doc__, lambda arguments: _calibrate(parse(arguments)))


def _calibrate(options: Options) -> int:
    insist_on_place(Path(options.out), "out")
    protocol = compose(["protocol=full"]).protocol
    rows: list[Calibration] = []
    for row in chain(simulated(protocol, options.sweeps, options.seed), real(protocol, options.real, options.seed)):
        rows.append(row)
        print(
            f"{row.sweeps} sweeps, {row.noise}, {100 * row.effect:g} % slower: coverage {row.coverage:.3f}", flush=True
        )
    print(to_markdown(calibration_table(rows)))
    write_figures(Path(options.out), _record(options, protocol, rows))
    print(f"{options.out}: {len(rows)} rows")
    return 0


def simulated(protocol: ProtocolConfig, sweeps: int, seed: int) -> Iterator[Calibration]:
    """Every noise and every effect, with all rounds and ending points early."""
    for noise in NOISES if sweeps else ():
        for effect in EFFECTS:
            for target_ci in (None, protocol.target_ci):
                yield simulate(noise, effect, replace(protocol, target_ci=target_ci), sweeps, seed)


def real(protocol: ProtocolConfig, sweeps: int, seed: int) -> Iterator[Calibration]:
    """Real sweeps of the busy loop, with and without restarts: one Calibration per variant, the control first."""
    for noise, restart_rounds in REAL_NOISES.items() if sweeps else ():
        asked = replace(protocol, restart_rounds=restart_rounds)
        analyses = [_busy_sweep(_busy_experiment(asked, seed + sweep)) for sweep in range(sweeps)]
        for name in BUSY_VARIANTS[1:]:
            rows = ([*compared(analysis, name)] for analysis in analyses)
            yield judge(noise, slow_down(name), protocol.target_ci is not None, rows)


def _busy_experiment(protocol: ProtocolConfig, seed: int) -> ExperimentConfig:
    # Many short windows: their median shrugs off what else runs on a shared machine.
    short = replace(protocol, windows=40, steps_per_window=1, warmup_min_steps=3)
    variants = [VariantConfig(name, BASELINE) for name in BUSY_VARIANTS]
    workloads = [WorkloadConfig("decode", "decode", batches=[8, 16], lengths=[1])]
    return ExperimentConfig("busy", "", ["tiny"], variants, workloads, short, device="cpu", seed=seed)


def _busy_sweep(config: ExperimentConfig) -> Analysis:
    """One real sweep, in a folder that is thrown away."""
    prepared = prepare(config)
    manifest = new_manifest(prepared.config, prepared.models, prepared.plan, prepared.environment, code())
    with tempfile.TemporaryDirectory() as folder, create_run(Path(folder), manifest) as store:
        with make_display(prepared.plan.cells, [], io.StringIO()) as display:
            Sweep(prepared, store, display, [], BUSY_WORKER).run()
        return analyse(load_run(Path(folder), config.name, "latest"))


def _record(options: Options, protocol: ProtocolConfig, rows: Sequence[Calibration]) -> dict[str, object]:
    made_of = code()
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": made_of.commit,
        "dirty": made_of.dirty,
        "cpu": machine().cpu,
        "seed": options.seed,
        "protocol": {key: getattr(protocol, key) for key in ("rounds", "min_rounds", "target_ci", "windows")},
        "rows": [plain.encode(row) for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main())
