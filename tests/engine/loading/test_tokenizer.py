"""Tokenizers of folders and GGUF files against transformers, and text that streams."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors

from engine.errors import ModelError, UserError
from engine.loading.gguf_file import open_gguf
from engine.loading.gguf_tokenizer import gguf_tokenizer
from engine.loading.tokenizer import Tokenizer, load_tokenizer
from experiments.fetch import cached_model
from tests.engine.loading.gguf_files import BOS_ID, EOS_ID, MERGES, TOKENS

REPLACEMENT = "\ufffd"
TEXTS = [
    "The capital of France is",
    "  leading and trailing  ",
    "line\n\n\tbreaks\r\n",
    "it's WE'LL don't",
    "héllo, 你好! \N{FAMILY}\N{ZERO WIDTH JOINER}\N{BOY} \N{SNOWMAN}",
    "1234 in 2024",
    "f(x) := {x**2} -> <div>",
    "",
]
METADATA: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.token_type": [1] * (len(TOKENS) - 2) + [3, 3],
    "tokenizer.ggml.bos_token_id": BOS_ID,
    "tokenizer.ggml.eos_token_id": EOS_ID,
}


def build(**changes: Any) -> Tokenizer:
    metadata = METADATA | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return gguf_tokenizer(metadata, (EOS_ID,), "m.gguf")


def sentencepiece_like() -> Tokenizer:
    """Metaspace, byte fallback and a stripped leading space, as in Llama 2 and Mistral."""
    words = ["▁", "▁the", "▁cat", "s", "cat", "!"]
    vocab = {token: index for index, token in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    backend = Backend(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return Tokenizer(backend)


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = tokenizer.stream()
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip(text: str) -> None:
    tokenizer = build()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_ids == (EOS_ID,)


def test_merges_apply_and_control_tokens_are_whole_and_unprinted() -> None:
    tokenizer = build()
    assert [TOKENS[i] for i in tokenizer.encode("hello w<eos>")] == ["hello", "Ġw", "<eos>"]
    assert tokenizer.decode([BOS_ID, *tokenizer.encode("hello"), EOS_ID]) == "hello"


def test_a_leading_token_is_added_where_the_file_wants_it() -> None:
    assert build(add_bos_token=True).encode("he") == [BOS_ID, TOKENS.index("he")]
    assert build(add_bos_token=False).encode("he") == [TOKENS.index("he")]
    # Llama 3 files leave the flag out and mean true.
    assert build(pre="llama-bpe").encode("he") == [BOS_ID, TOKENS.index("he")]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["a", " ", "1", "2", "3", "4", " b", "'s"]),
        ("gpt-2", ["a", " 1234", " b", "'s"]),
        ("qwen2", ["a", " ", "1", "2", "3", "4", " b", "'s"]),
        ("llama-bpe", ["a", " ", "123", "4", " b", "'s"]),
    ],
)
def test_the_pre_tokenizer_splits_as_the_published_one(pre: str, pieces: list[str]) -> None:
    """Each piece is made one token, so that the tokens show the split."""
    spelled = [piece.replace(" ", "Ġ") for piece in pieces]
    merges = {f"{word[:end]} {word[end]}": word[: end + 1] for word in spelled for end in range(1, len(word))}
    tokens = list(dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *merges.values(), "<s>"]))
    changes = {"tokens": tokens, "merges": list(merges), "token_type": [1] * len(tokens), "add_bos_token": False}
    tokenizer = build(pre=pre, bos_token_id=0, eos_token_id=0, **changes)
    assert [tokens[token_id] for token_id in tokenizer.encode("".join(pieces))] == spelled


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_streamed_pieces_add_up_and_hold_whole_characters(text: str) -> None:
    for tokenizer in (build(), sentencepiece_like()):
        ids = tokenizer.encode(text)
        pieces = stream(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        if REPLACEMENT not in text:
            assert not any(piece.endswith(REPLACEMENT) for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, len(TOKENS) - 1), max_size=40))
def test_any_tokens_stream_to_what_they_decode_to(ids: list[int]) -> None:
    """Also those that are no UTF-8, and special tokens in between."""
    tokenizer = build()
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_of_several_tokens_comes_whole() -> None:
    tokenizer = build()
    ids = tokenizer.encode("a\N{SNOWMAN}b")
    assert len(ids) == 5
    assert stream(tokenizer, ids) == ["a", "", "", "\N{SNOWMAN}", "b", ""]


def test_a_leading_space_of_a_later_word_is_kept() -> None:
    tokenizer = sentencepiece_like()
    assert stream(tokenizer, [1, 2, 3, 1]) == ["the", " cat", "s", " the", ""]


def test_half_a_character_at_the_end_is_flushed() -> None:
    tokenizer = build()
    ids = tokenizer.encode("\N{SNOWMAN}")[:2]
    assert stream(tokenizer, ids) == ["", "", tokenizer.decode(ids)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    backend = Backend(models.BPE(vocab={token: index for index, token in enumerate(TOKENS)}, merges=[("h", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS_ID)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    fast.save_pretrained(tmp_path)
    return tmp_path


def test_a_folders_tokenizer_equals_transformers(folder: Path) -> None:
    tokenizer, reference = load_tokenizer(folder, ()), transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer is not None
    for text in TEXTS:
        ids = reference.encode(text)
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert tokenizer.eos_ids == (EOS_ID,)
    messages = [{"role": "user", "content": "hi"}]
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.apply_chat_template(messages) == expected


def test_cut_and_padding_of_its_training_are_not_applied_to_prompts(folder: Path) -> None:
    file = folder / "tokenizer.json"
    backend = Backend.from_file(str(file))
    backend.enable_truncation(3)
    backend.enable_padding(length=40)
    backend.save(str(file))
    tokenizer, reference = load_tokenizer(folder, ()), transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer is not None
    for text in TEXTS:
        assert tokenizer.encode(text) == reference.encode(text)


def test_of_several_chat_templates_the_default_is_taken(folder: Path) -> None:
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    reference.chat_template = {"default": reference.chat_template, "tool_use": "none"}
    reference.save_pretrained(folder)
    tokenizer = load_tokenizer(folder, ())
    assert tokenizer is not None
    messages = [{"role": "user", "content": "hi"}]
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.apply_chat_template(messages) == expected


def test_ids_of_the_config_win_over_the_tokenizers(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, (3, 4))
    assert tokenizer is not None
    assert tokenizer.eos_ids == (3, 4)


def test_a_folder_without_a_tokenizer_gives_none(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path, ()) is None


def test_a_damaged_tokenizer_names_the_folder(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(ModelError, match="the tokenizer cannot be read") as caught:
        load_tokenizer(folder, ())
    assert str(caught.value).startswith(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merges": ["h x1"]}, "tokenizer.ggml.merges do not fit the vocabulary"),
        ({"merges": ["he"]}, "tokenizer.ggml.merges do not fit the vocabulary"),
        ({"eos_token_id": len(TOKENS)}, f"tokenizer.ggml.eos_token_id is outside the vocabulary of {len(TOKENS)}"),
    ],
)
def test_metadata_that_do_not_add_up_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(**changes)
    assert str(caught.value).startswith(f"m.gguf: {message}")


def test_no_chat_template_is_said_so() -> None:
    with pytest.raises(UserError, match="the model has no chat template"):
        build().apply_chat_template([{"role": "user", "content": "hi"}])


def test_the_real_tokenizer_equals_transformers_reading_of_it() -> None:
    path = cached_model("smollm2-135m")
    if path is None:
        pytest.skip("SmolLM2-135M is not in the cache; fetch it with python -m experiments.fetch smollm2-135m")
    reference = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer = gguf_tokenizer(open_gguf(path).metadata, (2,), str(path))
    for text in TEXTS:
        assert tokenizer.encode(text) == reference.encode(text)
    messages = [{"role": "user", "content": "Say hi."}]
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.apply_chat_template(messages) == expected
