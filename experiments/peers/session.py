"""One model in another engine: our weights as a folder, the engine that loaded it, and the cells it must hold."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from engine import ModelConfig
from experiments.config import BASELINE, REQUEST_KINDS, ProtocolConfig, VariantConfig, WorkloadConfig
from experiments.errors import Unsupported
from experiments.measuring.offline import draw_requests
from experiments.measuring.session import MAX_MODEL_LEN, Session, draw_prompts, free_memory
from experiments.measuring.verdict import NUM_PROMPTS
from experiments.messages import Load
from experiments.peers.adapter import LoadPeer, Peer, adapter_of
from experiments.peers.checkpoint import checkpoint_folder
from experiments.peers.lengths import decode_lengths
from experiments.records import Point

# An engine may keep some blocks for itself.
SPARE_BLOCKS = 8
# Random tokens of a verdict's prompt, at most.
VERDICT_PROMPT = 256


@dataclass
class PeerSession:
    """A loaded peer. `salt` counts its calls, so that none meets a prompt that a prefix cache may still hold."""

    request: Load
    peer: Peer
    config: ModelConfig
    weights_words: str
    weights_hash: str
    salt: int = 0

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self.request.device)

    @property
    def kernels(self) -> str:
        """Its own; on a CPU it is compared with twins, so that no speed is claimed."""
        return "peer" if self.request.device == "cuda" else "peer beside twins"

    def workload(self, point: Point) -> WorkloadConfig:
        """The workload of a point."""
        return next(workload for workload in self.request.workloads if workload.name == point.workload)

    def fresh_prompts(self, point: Point, length: int) -> list[list[int]]:
        """Random prompts that no call before has had."""
        self.salt += 1
        return draw_prompts(self.request.seed, point, length, self.config.vocab_size, self.salt)

    def ours(self) -> Session:
        """The same weights in our baseline, to be judged by."""
        return _baseline(self.request)


def open_peer(request: Load) -> PeerSession:
    """Write the weights where they are not written yet, and load the peer. Unsupported where it cannot be had."""
    adapter = adapter_of(request.variant.kind)
    if missing := adapter.missing(request.variant.path):
        raise Unsupported(missing)
    ours = _baseline(request)
    config, words, weights_hash = ours.original.config, ours.weights_words, ours.weights_hash
    folder = checkpoint_folder(ours)
    del ours
    free_memory(torch.device(request.device))
    peer = adapter.load(_load_request(request, config, folder, adapter.BLOCK_SIZE))
    return PeerSession(request, peer, config, words, weights_hash)


def _baseline(request: Load) -> Session:
    return Session(replace(request, variant=VariantConfig(BASELINE, BASELINE)))


def _load_request(request: Load, config: ModelConfig, folder: Path, block_size: int) -> LoadPeer:
    workloads = {workload.name: workload for workload in request.workloads}
    asked = [point for point in request.points if request.variant.name not in workloads[point.workload].skip]
    # The verdict's prompts are short texts, or as many random tokens as they get answers.
    queued = [[VERDICT_PROMPT + request.protocol.verdict_tokens] * (2 * NUM_PROMPTS)]
    equal: list[list[int]] = []
    for point in asked:
        workload = workloads[point.workload]
        cells = queued if workload.kind in REQUEST_KINDS else equal
        cells.append(_sizes(point, workload, request.protocol, config))
    sizes = queued + equal
    longest = max(max(tokens) for tokens in sizes if tokens)
    max_model_len = min(config.max_position_embeddings, max(MAX_MODEL_LEN, longest))

    def room(cells: list[list[int]]) -> int:
        # A token more each, since an engine may make room for the next one early.
        return block_size * (SPARE_BLOCKS + max(sum(-(-(each + 1) // block_size) for each in cell) for cell in cells))

    return LoadPeer(
        folder=folder,
        model=config,
        dtype=request.dtype,
        device=request.device,
        seed=request.seed,
        runtime=request.variant.runtime,
        path=request.variant.path,
        max_model_len=max_model_len,
        max_num_seqs=max(len(tokens) for tokens in sizes),
        kv_tokens=max(max_model_len, room(sizes)),
        queued_tokens=room(queued),
    )


def _sizes(point: Point, workload: WorkloadConfig, protocol: ProtocolConfig, config: ModelConfig) -> list[int]:
    """Tokens of each sequence of a cell at its end; none for a kind of cell that no peer measures."""
    match workload.kind:
        case "decode":
            return [decode_lengths(point, protocol, config.max_position_embeddings).most] * point.batch
        case "prefill":
            return [point.length + 1] * point.batch
        case "offline":
            requests = draw_requests(point.batch, workload, config.vocab_size)
            return [len(prompt) + sampling.max_tokens for prompt, sampling in requests]
        case _:
            return []
