"""`fusebench generate`: an answer with its speed, and one line for whatever cannot be done."""

import pytest
import torch

from engine.loading import load_model
from engine.loading.random import random_weights
from experiments import generate
from experiments.errors import UserError
from experiments.generate import Options, main, parse, read_bytes
from tests.engine.tiny import GREEDY, tiny_engine, tiny_tokenizer, with_tokenizer


def test_tokens_go_to_stdout_and_the_speed_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """A named model has no tokenizer: its answer is token ids. The same seed gives the same answer."""
    arguments = ["seeded weights", "model=tiny", "variant=folded", "max_tokens=5", "max_model_len=64", "device=cpu"]
    answers = []
    for _ in range(2):
        assert main(arguments) == 0
        said = capsys.readouterr()
        answers.append(said.out)
        assert said.err.startswith("[folded, cpu, float32: ")
        assert "tokens/s" in said.err
    assert answers[0] == answers[1]
    assert 1 <= answers[0].count(",") + 1 <= 5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["hello", "tokens=3"], "tokens"),
        (["hello", "max_tokens=many"], "max_tokens"),
        (["hello", "max_tokens=1.5"], "max_tokens"),
        (["hello", "max_tokens=0", "model=tiny"], "max_tokens"),
        (["hello", "variant=fuzed", "model=tiny"], "fuzed"),
        (["hello", "variant=vllm", "model=tiny"], "variant=vllm is another engine, which runs in sweeps only"),
        (["hello", "model=/no/such/model"], "/no/such/model"),
        (["two", "prompts"], "one prompt"),
        (["model=tiny"], "one prompt"),
        (["hello", "model=tiny", "max_model_len=64", "max_tokens=60"], "max_model_len"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    """The line names what is wrong."""
    assert main([*arguments, "device=cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error


def test_options_are_typed() -> None:
    """Whole numbers stay whole; the rest keeps its default."""
    prompt, options = parse(["a prompt", "temperature=1", "top_k=3", "model=some=odd/name"])
    assert prompt == "a prompt"
    assert options == Options(temperature=1.0, top_k=3, model="some=odd/name")
    with pytest.raises(UserError, match="top_k"):
        parse(["a prompt", "top_k=true"])


def test_text_is_streamed_as_it_grows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces add up to the answer's text, characters of several tokens included."""
    expected = tiny_engine(loaded=with_tokenizer()).generate(["hello"], GREEDY)[0]
    monkeypatch.setattr(generate, "build", lambda options: tiny_engine(loaded=with_tokenizer()))
    assert main(["hello", f"max_tokens={len(expected.token_ids)}"]) == 0
    said = capsys.readouterr()
    whole = tiny_tokenizer().decode(expected.token_ids)
    assert whole.startswith(said.out.removesuffix("\n"))
    assert said.err.startswith("[baseline, cpu, float32: ")


def test_a_tied_head_is_read_once_and_the_embedding_not_at_all() -> None:
    """Whether they share a tensor or not, a step reads the same number of bytes."""
    tied, untied = (load_model(name, torch.bfloat16, "cpu", 0) for name in ("tiny", "tiny-llama"))
    for loaded in (tied, untied):
        config = loaded.config
        layer = config.hidden_size * (config.qkv_size + config.q_size + 3 * config.intermediate_size)
        norms = 2 * config.hidden_size + (2 * config.head_dim if config.qk_norm else 0)
        biases = config.qkv_bias * config.qkv_size + config.o_bias * config.hidden_size
        biases += config.mlp_bias * (2 * config.intermediate_size + config.hidden_size)
        head = config.vocab_size * config.hidden_size + config.hidden_size
        expected = 2 * (config.num_layers * (layer + norms + biases) + head)
        assert read_bytes(loaded.weights) == expected
    assert read_bytes(random_weights(tied.config, torch.float32, "cpu", 0)) == 2 * read_bytes(tied.weights)
