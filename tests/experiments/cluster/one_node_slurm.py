"""A real Slurm of one node, from Debian's `slurm-wlm` and `munge`, for the length of a test. Everything of it lives in
one folder, and ends with it. It listens on the address that this host's name stands for, since Slurm insists on the
name: 127.0.0.1, or a container's own. Where that is 127.0.1.1, as Debian has it, srun would wait there for answers that
go to 127.0.0.1, so it listens everywhere; nobody without the key in the folder is answered.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "setpriv")
START_S = 30

BOUND = "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"
CONFIG = """\
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldAddr={address}
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
AuthType=auth/munge
# How long a requeued job waits before it starts again, among other things.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
KillWait=1
{bound}
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr={address} CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


class CannotStart(Exception):
    """The daemons do not run here, for the reasons in their logs."""


def why_not() -> str:
    """Why no Slurm can be started here; empty where one can."""
    missing = [name for name in NEEDED if shutil.which(name, path=_path()) is None]
    if missing:
        return f"needs Debian's slurm-wlm and munge: there is no {missing[0]}"
    return "" if os.geteuid() == 0 else "the daemons of Slurm must be started by root"


@contextlib.contextmanager
def one_node_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start it; yields the environment in which sbatch and its kin find it. `folder` must have a short path, for it
    holds a socket."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    address = address_of(host)
    is_alias = address.startswith("127.") and address != "127.0.0.1"
    address, bound = ("127.0.0.1", "") if is_alias else (address, BOUND)
    ctld_port, slurmd_port = free_ports(address)
    config = folder / "slurm.conf"
    ports = {"ctld_port": ctld_port, "slurmd_port": slurmd_port}
    config.write_text(CONFIG.format(host=host, address=address, bound=bound, folder=folder, **ports))
    environment = os.environ | {"SLURM_CONF": str(config), "PATH": _path()}
    socket_, logs = folder / "munge.socket", f"--log-file={folder}/munge.log"
    munged = ["munged", "--foreground", "--force", f"--socket={socket_}", f"--key-file={key}", logs]
    munged += [f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed", "--num-threads=2"]
    daemons = [munged, ["slurmctld", "-D", "-f", str(config)], ["slurmd", "-D", "-f", str(config)]]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in daemons:
            running.append(_start(command, environment, folder))
            if command is munged:
                _wait_for(socket_.exists, running, folder)
        _wait_for(lambda: _node_state(environment) == "idle", running, folder)
        yield environment
    finally:
        _stop(running, environment)


def address_of(host: str) -> str:
    """The IPv4 address of this host's name. CannotStart where it has none."""
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise CannotStart(f"Slurm does not start where the host's name, {host}, has no address: {error}") from None


def free_ports(address: str) -> tuple[int, int]:
    """Two ports of the address that nobody listens on."""
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind((address, 0))
        return one.getsockname()[1], other.getsockname()[1]


def _path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def _start(command: list[str], environment: dict[str, str], folder: Path) -> "subprocess.Popen[bytes]":
    """A daemon in a session of its own, which the kernel ends should this process be killed."""
    with (folder / f"{command[0]}.out").open("wb") as out:
        bound = ["setpriv", "--pdeathsig", "TERM", *command]
        return subprocess.Popen(bound, env=environment, stdout=out, stderr=out, start_new_session=True)


def _node_state(environment: dict[str, str]) -> str:
    command = ["sinfo", "--noheader", "--format=%T"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _wait_for(condition: object, running: "list[subprocess.Popen[bytes]]", folder: Path) -> None:
    deadline = time.monotonic() + START_S
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in running):
            logs = [file.read_text(errors="replace")[-2000:] for file in sorted(folder.glob("*.out"))]
            raise CannotStart("Slurm does not start here:\n" + "\n".join(logs))
        time.sleep(0.05)


def _stop(running: "list[subprocess.Popen[bytes]]", environment: dict[str, str]) -> None:
    """End jobs first, then the daemons in the reverse order of their start."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(["scancel", "--signal=KILL", "--full", "--user=root"], env=environment, timeout=10, check=False)
    for daemon in reversed(running):
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(5)
