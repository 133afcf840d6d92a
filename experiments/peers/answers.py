"""Is a peer's answer that of the same weights? By the rule of our own verdicts."""

import torch
from torch import Tensor

from experiments.measuring.session import Session
from experiments.measuring.verdict import Answers, Divergence, judge, verdict_prompts
from experiments.peers.adapter import Peer
from experiments.peers.session import PeerSession
from experiments.records import Verdict


def verify_peer(session: PeerSession, num_positions: int) -> Verdict:
    """The verdict on the peer over about `num_positions` tokens, half of them in its answers.

    It answers one batch of equal prompts and one of unequal ones, since it may take different ways for them.
    """
    ours = session.ours()
    answers = greedy_answers(session.peer, ours, num_positions)
    return judge(ours, answers, lambda references: _divergence(session.peer, answers, references))


def greedy_answers(peer: Peer, ours: Session, num_positions: int) -> Answers:
    """(prompt and answer, length of the prompt) of each prompt of both batches."""
    texts = verdict_prompts(ours, max(2, num_positions // 8))
    half = max(2, num_positions // (4 * len(texts)))
    shortest = min(map(len, texts))
    answers: Answers = []
    for prompts in (
        [text[:shortest] for text in texts],
        [text[: max(1, len(text) - i)] for i, text in enumerate(texts)],
    ):
        for prompt, answer in zip(prompts, peer.generate(prompts, [half] * len(prompts)), strict=True):
            if len(answer) != half:
                raise RuntimeError(f"an answer has {len(answer)} tokens where {half} were asked for")
            answers.append((torch.tensor(prompt + answer, device=ours.device), len(prompt)))
    return answers


def _divergence(peer: Peer, answers: Answers, references: list[Tensor]) -> Divergence | None:
    parts = []
    for (tokens, _), reference in zip(answers, references, strict=True):
        logits = peer.logits(tokens)
        if logits is None:
            return None
        parts.append(Divergence.between(reference, logits, torch.arange(len(tokens), device=tokens.device)))
    return Divergence.joined(parts)
