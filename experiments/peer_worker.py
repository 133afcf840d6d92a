"""A worker process around another engine: the same messages over the same pipe. See experiments/peers/adapter.py.

Its argument is the kind of engine, which it imports at once: that takes seconds, while it waits for its turn to load.
"""

from experiments.messages import worker_channel

if __name__ == "__main__":
    # Before torch is imported: whatever a library prints must not reach the pipe.
    CHANNEL = worker_channel()

import sys
import traceback
from contextlib import suppress
from dataclasses import replace

from experiments.measuring.sensor import gpu_processes
from experiments.measuring.session import free_memory
from experiments.messages import Answer, Failed, Load, Measure, Measured, Ready, Verified, Verify
from experiments.peers.adapter import adapter_of
from experiments.peers.answers import verify_peer
from experiments.peers.cells import measure
from experiments.peers.session import PeerSession, open_peer
from experiments.records import Verdict
from experiments.worker import failure_kind, failure_reason, run_cell, serve


class PeerWorker:
    """Answers the harness's requests, one at a time."""

    def __init__(self) -> None:
        self.session: PeerSession | None = None
        self.verdict: Verdict | None = None
        self.gpu_pids: tuple[int, ...] = ()

    def answer(self, request: object) -> Answer:
        """The answer to one request; whatever goes wrong is an answer too."""
        try:
            if isinstance(request, Load):
                return self._load(request)
            session = self._session()
            protocol = session.request.protocol
            if isinstance(request, Verify):
                self.verdict = verify_peer(session, protocol.verdict_tokens)
                session.peer.rest()
                # Our own weights were here to be judged by; the next worker to load needs their room.
                free_memory(session.device)
                return Verified(self.verdict)
            if isinstance(request, Measure):
                point = request.cell.point
                ours = {*self.gpu_pids, *request.ours} if self.gpu_pids else None
                result = run_cell(request.cell, session.device, lambda: measure(session, point, protocol), ours)
                session.peer.rest()
                return Measured(replace(result, kernels=session.kernels, verdict=self.verdict))
            return Failed("skipped", f"another engine is not asked to {type(request).__name__.lower()}")
        except Exception as error:
            traceback.print_exc()  # Into the log: another engine's reasons are rarely told by the last line.
            return Failed(failure_kind(error), failure_reason(error))

    def _session(self) -> PeerSession:
        if self.session is None:
            raise RuntimeError("nothing is loaded")
        return self.session

    def _load(self, request: Load) -> Ready:
        self.session, self.verdict = None, None
        before = gpu_processes()
        self.session = session = open_peer(request)
        facts = {"includes": session.peer.includes, **session.peer.facts}
        # An engine may have processes of its own; nobody else's are loading meanwhile.
        self.gpu_pids = tuple(sorted(gpu_processes() - before))
        return Ready(session.weights_words, session.weights_hash, session.kernels, facts=facts, gpu_pids=self.gpu_pids)


def import_early(kind: str) -> None:
    """Whatever goes wrong here goes wrong again in `load`, which tells."""
    adapter = adapter_of(kind)
    with suppress(Exception):
        adapter.import_early()


if __name__ == "__main__":
    import_early(sys.argv[1])
    sys.exit(serve(CHANNEL, PeerWorker()))
