"""key=value words: typed, and whatever is wrong is named."""

from dataclasses import dataclass

import pytest

from experiments.errors import UserError
from experiments.options import choose, keys_of, parse_options, words_of


@dataclass(frozen=True)
class Some:
    """One field of each kind."""

    models: tuple[str, ...] = ()
    rows: tuple[int, ...] = (1, 2)
    dtype: str = "auto"
    repeats: int = 3
    pdl: bool = False
    margin: float = 0.01
    points: tuple[tuple[int, ...], ...] = ((1, 2), (3,))


def test_values_are_typed() -> None:
    asked = parse_options(Some, "some", ["models=[a,b=c]", "rows=8", "dtype=float16", "repeats=7", "pdl=true"])
    assert asked == Some(("a", "b=c"), (8,), "float16", 7, True)
    assert parse_options(Some, "some", ["--pdl", "margin=2.5%"]) == Some(pdl=True, margin=0.025)
    assert parse_options(Some, "some", ["rows=[]"]).rows == ()
    assert parse_options(Some, "some", ["points=[[1,128], [8,1024]]"]).points == ((1, 128), (8, 1024))
    assert parse_options(Some, "some", ["points=[8,1024]"]).points == ((8, 1024),)


@pytest.mark.parametrize(
    "options",
    [Some(), Some(("a",), (), "float16", 7, True, 0.5), Some(points=((1, 128), (8, 1024))), Some(models=("a", "b"))],
)
def test_options_can_be_written_as_they_were_typed(options: Some) -> None:
    assert parse_options(Some, "some", words_of(options)) == options


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("row=1", "some: unknown key 'row'; did you mean 'rows'?"),
        ("rows", "some: 'rows' is not of the form key=value"),
        ("rows=[1,two]", r"some: rows=\[1,two\] is no whole number"),
        ("repeats=2.5", "some: repeats=2.5 is no whole number"),
        ("repeats=true", "some: repeats=true is no whole number"),
        ("repeats=[", r"some: repeats=\[ is no whole number"),
        ("repeats=2026-13-01", "some: repeats=2026-13-01 is no whole number"),
        ("pdl={a", "some: pdl={a is no choice of true or false"),
        ("rows=-1", "must not be negative"),
        ("dtype=", "some: dtype= has no value"),
        ("margin=lots", "some: margin=lots is no number"),
        ("--repeats", "some: '--repeats' is not of the form key=value"),
        ("points=[[1,128],8]", r"some: points=\[\[1,128\],8\] is no list of lists"),
        ("points=[[1,x]]", "is no whole number"),
        ("pdl=1", "some: pdl=1 is no choice of true or false"),
    ],
)
def test_bad_values_are_named(argument: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse_options(Some, "some", [argument])


def test_help_shows_defaults() -> None:
    assert keys_of(Some) == "models=[]  rows=[1,2]  dtype=auto  repeats=3  pdl=false  margin=0.01  points=[[1,2],[3]]"


def test_names_are_chosen_among_those_known() -> None:
    assert choose("ops", (), ("x", "y")) == ("x", "y")
    assert choose("ops", ("y",), ("x", "y")) == ("y",)
    with pytest.raises(UserError, match="ops: there is no 'norm_liner'; did you mean 'norm_linear'"):
        choose("ops", ("norm_liner",), ("norm_linear", "lm_head"))
