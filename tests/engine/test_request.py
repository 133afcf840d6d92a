"""Sampling parameters are checked when they are made, prompts when they are asked."""

from array import array
from typing import Any

import numpy as np
import pytest
import torch

from engine import RequestError, RequestOutput, SamplingParams
from engine.request import SequenceState, as_tokens

NAN = float("nan")


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1}, {"temperature": NAN}, {"top_k": -1}, {"top_k": 2.5}, {"top_k": None}, {"top_p": 0.0},
        {"top_p": 1.1}, {"top_p": NAN}, {"min_p": -0.1}, {"min_p": 1.1}, {"max_tokens": 0}, {"max_tokens": 3.0},
        {"seed": 2**63}, {"seed": "one"}, {"logprobs": -1}, {"repetition_penalty": 0.0}, {"repetition_penalty": NAN},
        {"stop": ""}, {"stop": ("a", "")}, {"stop": ("a", 2.5)}, {"stop": (None,)}, {"stop": None}, {"stop": 3.5},
        {"temperature": "1"}, {"top_p": None}, {"min_p": "0"}, {"repetition_penalty": None},
        {"repetition_penalty": float("inf")},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_parameter_is_named(bad: dict[str, Any]) -> None:
    """The message says which key has which value."""
    with pytest.raises(RequestError, match=next(iter(bad))):
        SamplingParams(**bad)


def test_stop_takes_one_or_many() -> None:
    """A single string or id is a list of one."""
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=7).stop == (7,)
    assert SamplingParams(stop=["a", np.int64(7)]).stop == ("a", 7)  # type: ignore[arg-type]


def test_unknown_parameters_are_errors() -> None:
    """Nothing is dropped silently."""
    with pytest.raises(TypeError, match="topk"):
        SamplingParams(topk=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "greedy", "needs_logits"),
    [
        ({}, True, False),
        ({"temperature": 1.0}, False, True),
        ({"logprobs": 0}, True, True),
        ({"repetition_penalty": 1.1}, True, True),
        ({"top_k": 5}, True, False),
    ],
)
def test_only_plain_greedy_needs_no_logits(given: dict[str, Any], greedy: bool, needs_logits: bool) -> None:
    """What the graph of a whole step can serve."""
    sampling = SamplingParams(**given)
    assert (sampling.greedy, sampling.needs_logits) == (greedy, needs_logits)


@pytest.mark.parametrize("tokens", [[3, 1, 4], (3, 1, 4), np.array([3, 1, 4]), torch.tensor([3, 1, 4])])
def test_prompts_are_copied_as_whole_numbers(tokens: Any) -> None:
    """Whatever holds the ids."""
    copied = as_tokens(tokens)
    assert copied == array("q", [3, 1, 4])
    assert copied is not tokens


@pytest.mark.parametrize("tokens", [[], [1.5], ["a"], [None], [2**70], np.array([]), 5, None])
def test_prompts_of_anything_else_are_errors(tokens: Any) -> None:
    """An empty prompt has no last token to predict from; a fraction is no token."""
    with pytest.raises(RequestError):
        as_tokens(tokens)


def test_tokens_in_flight_count() -> None:
    """A sequence whose last allowed token is being computed is exhausted before that token is known."""
    sequence = SequenceState(0, array("q", [1, 2, 3]), 3, SamplingParams(max_tokens=2), frozenset(), 0)
    assert (sequence.num_tokens, sequence.num_generated, sequence.exhausted) == (3, 0, False)
    sequence.tokens.append(9)
    assert not sequence.exhausted
    sequence.num_in_flight = 1
    assert (sequence.num_tokens, sequence.num_generated, sequence.exhausted) == (5, 2, True)


def test_an_output_is_finished_when_it_has_a_reason() -> None:
    """None so far, then any of four."""
    output = RequestOutput(0, [1])
    assert not output.finished
    output.finish_reason = "abort"
    assert output.finished
