"""One worker process as the harness sees it: start it, ask it one thing at a time, end it whatever state it is in."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from experiments.durable import mendable
from experiments.environment import ROOT, python_path
from experiments.messages import Answer, Exit, Progress, Request, from_line, to_line
from experiments.records import Status

# -P: a folder called `experiments` where the user stands must not be taken for ours.
WORKER_COMMAND = (sys.executable, "-P", "-m", "experiments.worker")
PEER_COMMAND = (sys.executable, "-P", "-m", "experiments.peer_worker")  # And the kind of engine.
EXIT_TIMEOUT_S = 10
LOOK_S = 5.0
TAIL_BYTES = 4096
LONGEST_REASON = 500


class WorkerLost(Exception):
    """The worker died or was killed for taking too long; `status` is what becomes of what it was doing."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class WorkerProcess:
    """A running worker. Idle, it blocks on its pipe and takes no time from whoever measures."""

    def __init__(self, log: Path, command: Sequence[str] = WORKER_COMMAND) -> None:
        self._log = log
        with open_log(log) as stderr:
            self._log_start = stderr.tell()
            # In a session of its own, so that Ctrl-C reaches the harness alone, and that a kill takes its children too.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                env=os.environ | {"PYTHONPATH": python_path()},
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._answers, False)
        self._received = b""

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, request: Request, timeout_s: float, on_progress: Callable[[str], None]) -> Answer:
        """The worker's answer. WorkerLost where it dies or takes longer than `timeout_s`; it is ended then."""
        deadline = time.monotonic() + timeout_s
        try:
            self._send(to_line(request), deadline)
            while True:
                answer = self._receive(deadline)
                if not isinstance(answer, Progress):
                    return answer
                on_progress(answer.text)
        except TimeoutError:
            self.kill()
            reason = f"killed after {timeout_s:g} s without an answer"
            raise WorkerLost(Status.TIMEOUT, reason + self._last_words()) from None
        except (BrokenPipeError, EOFError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_TIMEOUT_S)
            self.kill()
            raise WorkerLost(Status.ERROR, f"the worker {self._how_it_ended()}{self._last_words()}") from None

    def abort(self) -> None:
        """Have the worker and its children killed, and whoever waits for it, in another thread, find it lost."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the worker and its children now."""
        self.abort()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def dismiss(self) -> None:
        """Tell the worker to end by itself, without waiting for it."""
        with contextlib.suppress(OSError, EOFError):
            self._send(to_line(Exit()), time.monotonic() + EXIT_TIMEOUT_S)

    def close(self) -> None:
        """Let the worker end by itself; kill it where it does not."""
        self.dismiss()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_TIMEOUT_S)
        self.kill()

    def _send(self, data: bytes, deadline: float) -> None:
        while data:
            self._wait(self._requests, selectors.EVENT_WRITE, deadline)
            data = data[os.write(self._requests, data) :]

    def _receive(self, deadline: float) -> Answer:
        """The next message; what else comes down the pipe goes to the log."""
        while True:
            while b"\n" not in self._received:
                self._wait(self._answers, selectors.EVENT_READ, deadline)
                chunk = os.read(self._answers, 1 << 16)
                if not chunk:
                    raise EOFError
                self._received += chunk
            line, _, self._received = self._received.partition(b"\n")
            try:
                message = from_line(line)
            except ValueError:
                message = None
            if isinstance(message, Answer):
                return message
            with contextlib.suppress(OSError), self._log.open("ab") as log:
                log.write(line + b"\n")

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        """Block until the pipe is ready; EOFError once the worker is dead, even if its child holds the pipe open."""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, event)
            while (left_s := deadline - time.monotonic()) > 0:
                if selector.select(min(left_s, LOOK_S)):
                    return
                if self._process.poll() is not None:
                    raise EOFError
        raise TimeoutError

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        if code >= 0:
            return f"exited with code {code}"
        hint = " (by the system, for want of memory?)" if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"

    def _last_words(self) -> str:
        """The last line of this worker's log, without the paths of this machine."""
        try:
            with self._log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - TAIL_BYTES))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return f": {without_paths(lines[-1].strip())[:LONGEST_REASON]}" if lines else ""


def open_log(path: Path) -> BinaryIO:
    """The log, to be added to. UserError where it cannot be written, on a full disk for instance."""
    try:
        return path.open("ab")
    except OSError as error:
        raise mendable(error, path) from error


def without_paths(text: str) -> str:
    """The text with this checkout and the home folder left out, fit to be published."""
    for folder, short in ((f"{ROOT}{os.sep}", ""), (str(Path.cwd()) + os.sep, ""), (str(Path.home()), "~")):
        # The home of a container's user without a name is /, which is no secret and in every "tokens/s".
        text = text.replace(folder, short) if folder.strip(os.sep) else text
    return text
