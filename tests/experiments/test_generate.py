"""`fusebench generate`: an answer with its speed, and one line for whatever cannot be done."""

import pytest

from experiments.errors import UserError
from experiments.generate import Options, main, parse


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
