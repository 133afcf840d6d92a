"""A peer with other weights, or another model's arithmetic, is found out by its tokens alone."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine import SamplingParams
from experiments.measuring.reference import reference_logits
from experiments.measuring.session import Session
from experiments.peers.answers import verify_peer
from experiments.peers.session import PeerSession
from experiments.records import Verdict
from tests.experiments.measuring.sessions import session_of
from tests.experiments.peers.loads import load_peer

# Its head is not its embedding: of a tied random model this small, any seed repeats the prompt's last token.
MODEL = "tiny-llama"


class OurEngine:
    """A peer that is our own baseline, on the weights of any seed; it gives logits where told to."""

    includes = ""

    def __init__(self, seed: int) -> None:
        self.facts: dict[str, str] = {}
        self.session: Session = session_of(MODEL, seed=seed)
        self.batches: list[set[int]] = []

    def generate(self, prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
        """Greedy answers."""
        self.batches.append(set(map(len, prompts)))
        engine = self.session.engine(len(prompts), 128, 512)
        asked = [SamplingParams(max_tokens=count, ignore_eos=True) for count in num_tokens]
        return [output.token_ids for output in engine.generate(list(prompts), asked)]

    def logits(self, tokens_T: Tensor) -> Tensor | None:
        """None: tokens alone."""

    def rest(self) -> None:
        """Nothing runs."""

    def counters(self) -> dict[str, float]:
        """None."""
        return {}


def verdict_on(peer: OurEngine) -> Verdict:
    session = PeerSession(load_peer("vllm", MODEL), peer, peer.session.loaded.config, "", "")
    return verify_peer(session, 48)


def test_right_tokens_pass_without_logits() -> None:
    """The figures that only logits give are left open, and equal and unequal prompts were both asked."""
    peer = OurEngine(seed=0)
    verdict = verdict_on(peer)
    assert verdict.ok
    assert (verdict.kl_mean, verdict.kl_max, verdict.kl_max_position) == (None, None, None)
    assert verdict.top1_agreement == 1.0
    # Two batches of four answers of three tokens.
    assert verdict.positions == 24
    assert [len(lengths) for lengths in peer.batches] == [1, 4]


def test_another_model_s_tokens_fail() -> None:
    """Weights of another seed: the likeliest token is hardly ever the reference's."""
    verdict = verdict_on(OurEngine(seed=1))
    assert not verdict.ok
    assert verdict.reason.startswith("answers differ from the fp32 reference: greedy tokens at most ")
    assert verdict.top1_agreement < 0.2
    assert verdict.first_divergence is not None


def test_one_wrong_token_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one answer, at its end."""
    peer = OurEngine(seed=0)
    right = peer.generate

    def generate(prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
        answers = right(prompts, num_tokens)
        answers[-1][-1] = (answers[-1][-1] + 1) % 250
        return answers

    monkeypatch.setattr(peer, "generate", generate)
    verdict = verdict_on(peer)
    assert not verdict.ok
    assert verdict.first_divergence == 2


def test_logits_are_judged_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right tokens do not excuse logits that are a per cent off."""
    peer = OurEngine(seed=0)
    monkeypatch.setattr(peer, "logits", lambda tokens: reference_logits(peer.session.original, tokens))
    good = verdict_on(peer)
    assert good.ok
    assert good.kl_mean is not None
    assert good.kl_mean < 1e-12
    monkeypatch.setattr(peer, "logits", lambda tokens: 1.01 * reference_logits(peer.session.original, tokens))
    bad = verdict_on(peer)
    assert not bad.ok
    assert "mean KL" in bad.reason
    assert torch.isfinite(torch.tensor(bad.kl_max))
