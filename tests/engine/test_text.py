"""Text as it grows: nothing shown is taken back, nothing of a stop string is shown, all adds up to the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text import TextStream
from tests.engine.tiny import CONFIG, tiny_tokenizer

TEXTS = st.text("abfkl é😀", max_size=20)
TOKENS = st.lists(st.integers(3, CONFIG.vocab_size - 1), max_size=30)
STOPS = st.lists(st.text("abfk", min_size=1, max_size=4), max_size=3).map(tuple)


def stream_of(*stops: str) -> TextStream:
    """A stream over the tiny tokenizer."""
    return TextStream(tiny_tokenizer().stream(), stops)


def shown(stream: TextStream, text: str) -> list[str]:
    """What can be read after each token of a text."""
    views = []
    for token in tiny_tokenizer().encode(text):
        stream.push(token)
        views.append(stream.text)
    return views


@given(TEXTS, STOPS)
def test_the_text_is_the_decoded_tokens_up_to_the_first_stop(text: str, stops: tuple[str, ...]) -> None:
    """Against the definition: decode everything, cut at the earliest stop string; and it only ever grows."""
    stream, taken = stream_of(*stops), list[int]()
    for token in tiny_tokenizer().encode(text):
        before = stream.text
        stream.push(token)
        assert stream.text.startswith(before)
        taken.append(token)
        if stream.stopped:
            break
    before = stream.text
    stream.close()
    assert stream.text.startswith(before)
    whole = tiny_tokenizer().decode(taken)
    cuts = [at for stop in stops if (at := whole.find(stop)) >= 0]
    assert stream.stopped == bool(cuts)
    assert stream.text == (whole[: min(cuts)] if cuts else whole)


@given(TOKENS)
def test_whatever_comes_nothing_shown_is_taken_back(tokens: list[int]) -> None:
    """Bytes of no character too, which spoil the ones before them where all is decoded at once."""
    stream = stream_of()
    for token in tokens:
        before = stream.text
        stream.push(token)
        assert stream.text.startswith(before)


def test_a_stray_byte_spoils_no_character_before_it() -> None:
    """The first byte of a character that never comes, behind one that is there."""
    tokenizer = tiny_tokenizer()
    tokens = [*tokenizer.encode("é"), tokenizer.encode("😀")[0], *tokenizer.encode("a")]
    stream = stream_of()
    for token in tokens:
        stream.push(token)
    stream.close()
    assert stream.text == "é\N{REPLACEMENT CHARACTER}a"


def test_special_tokens_have_no_text_and_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows the end of a text, where it is ignored, is not decoded again and again."""
    tokenizer = tiny_tokenizer()
    stream = stream_of()
    shown(stream, "a")
    stream.push(min(tokenizer.skipped))
    assert stream.text == "a"
    monkeypatch.setattr(type(tokenizer), "decode", lambda *_: pytest.fail("decoded"))
    stream.push(min(tokenizer.skipped))


def test_a_stop_string_across_tokens_is_held_back() -> None:
    """Of `fkl` nothing is shown while it may still come; what turned out to be no stop string is."""
    assert shown(stream_of("fkl"), "afkafkl") == ["a", "a", "a", "afka", "afka", "afka", "afka"]


def test_the_stop_string_is_found_inside_a_token() -> None:
    """Tokens need not end where a stop string does; the rest of the token is dropped."""
    tokenizer = tiny_tokenizer()
    pair = next(i for i in range(29, 55) if tokenizer.decode([i]) == "fa")
    stream = stream_of("f")
    stream.push(pair)
    assert (stream.stopped, stream.text) == (True, "")


def test_of_two_stop_strings_the_earlier_cuts() -> None:
    """Whichever was listed first."""
    stream = stream_of("kl", "fk")
    shown(stream, "xfkl")
    assert (stream.stopped, stream.text) == (True, "x")


def test_half_a_character_is_not_shown() -> None:
    """An accented letter takes two tokens and a face four; each appears with its last."""
    assert shown(stream_of(), "aé") == ["a", "a", "aé"]
    assert shown(stream_of(), "😀b") == ["", "", "", "😀", "😀b"]


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    """Closing shows what `decode` of all tokens gives."""
    stream = stream_of()
    views = shown(stream, "a😀"[:1])
    stream.push(tiny_tokenizer().encode("😀")[0])
    assert views == [stream.text] == ["a"]
    stream.close()
    assert stream.text == "a\N{REPLACEMENT CHARACTER}"


def test_closing_shows_the_beginning_of_a_stop_string() -> None:
    """At the end of the answer it is no stop string after all."""
    stream = stream_of("fkl")
    assert shown(stream, "afk") == ["a", "a", "a"]
    stream.close()
    assert (stream.stopped, stream.text) == (False, "afk")


@pytest.mark.parametrize("stop", ["é", "é😀", "😀"])
def test_stop_strings_may_be_more_than_letters(stop: str) -> None:
    """Characters of several tokens count when they are whole."""
    stream = stream_of(stop)
    shown(stream, f"b{stop}")
    assert (stream.stopped, stream.text) == (True, "b")
