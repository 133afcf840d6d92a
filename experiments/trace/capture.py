"""A worker under a profiler (`nsys profile`, `ncu`): its command line, its environment, and how it ends.

nsys passes a program's output on through pipes of its own, mixed with its progress bar, so the worker's two pipes go
around it as descriptors 3 and 4. The environment is cut to what a worker needs: nsys writes all of it into the report.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.environment import python_path
from experiments.errors import UserError
from experiments.messages import Exit, to_line
from experiments.trace.tools import Profiler
from experiments.worker_process import WORKER_COMMAND, WorkerProcess

WINDOW = "cudaProfilerApi"
KEPT = frozenset(
    "PATH HOME USER LOGNAME LANG LC_ALL TMPDIR PYTHONPATH LD_LIBRARY_PATH VIRTUAL_ENV XDG_CACHE_HOME OMP_NUM_THREADS "
    "HF_HOME HF_HUB_CACHE HF_HUB_OFFLINE".split()
)
KEPT_PREFIXES = ("CUDA_", "NVIDIA_", "TRITON_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "CUBLAS_", "FUSEBENCH_")
NEVER_KEPT = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "API_KEY", "ACCESS_KEY", "PRIVATE_KEY")
ASIDE = 'exec 3<&0 4>&1 </dev/null >&2; exec "$@"'
BACK = 'exec "$@" <&3 >&4 3<&- 4>&-'
END_TIMEOUT_S = 10
REPORT_TIMEOUT_S = 600


def profile_arguments(output: Path, window: str = WINDOW, activities: str = "cuda,nvtx") -> list[str]:
    """What `nsys` is told: one window, opened by the program, which goes on after it; graphs traced node by node.

    `window` is cudaProfilerApi or the name of an NVTX range (for programs without CUDA).
    """
    trigger = [f"--capture-range={WINDOW}"]
    if window != WINDOW:
        # Only registered strings open a window unless told so; `@*` is any domain.
        unregistered = "--env-var=NSYS_NVTX_PROFILER_REGISTER_ONLY=0"
        trigger = ["--capture-range=nvtx", f"--nvtx-capture={window}@*", unregistered]
    return [
        "profile",
        f"--trace={activities}",
        "--sample=none",
        "--cpuctxsw=none",
        *(["--cuda-graph-trace=node"] if "cuda" in activities.split(",") else []),
        *trigger,
        "--capture-range-end=stop",
        # Compilers leave helper processes behind, which would keep nsys waiting.
        "--wait=primary",
        "--force-overwrite=true",
        f"--output={output}",
    ]


def reduced_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a worker needs, and no secret among them."""
    kept = {
        name: value
        for name, value in environ.items()
        if (name in KEPT or name.startswith(KEPT_PREFIXES)) and not any(word in name for word in NEVER_KEPT)
    }
    kept["PYTHONPATH"] = python_path(kept)
    return kept


def traced_command(
    profiler: Profiler,
    arguments: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    worker: Sequence[str] = WORKER_COMMAND,
) -> list[str]:
    """The command that starts a worker under a profiler, its pipes led around it."""
    kept = profiler.environment(reduced_environment(environ))
    variables = [f"{name}={value}" for name, value in sorted(kept.items())]
    around = ["/bin/sh", "-c", ASIDE, "sh", str(profiler.path), *arguments]
    return ["/usr/bin/env", "-i", *variables, *around, "/bin/sh", "-c", BACK, "sh", *worker]


class TracedWorker(WorkerProcess):
    """A worker under a profiler. `finish` lets that write its report; `kill` gives it up, agent and all.

    A `with` block ends in the one, or in the other where it raises.
    """

    def __enter__(self) -> "TracedWorker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish(REPORT_TIMEOUT_S)
        else:
            self.kill()

    def finish(self, timeout_s: float) -> None:
        """Let the worker exit and the profiler write what it has. UserError where that takes too long."""
        try:
            with contextlib.suppress(BrokenPipeError):
                self._send(to_line(Exit()), time.monotonic() + END_TIMEOUT_S)
            self._process.wait(timeout_s)
        except (TimeoutError, subprocess.TimeoutExpired):
            raise UserError(f"the profiler had written no report {timeout_s:g} s after the worker's end") from None
        finally:
            self.kill()

    def kill(self) -> None:
        """End the worker now. nsys gets a moment to end its agent, a session of its own that outlives a SIGKILL."""
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if self._process.poll() is None:
                os.kill(self.pid, signal.SIGTERM)
                self._process.wait(END_TIMEOUT_S)
        super().kill()
