"""The tokenizer that a GGUF file carries in its metadata, rebuilt with the `tokenizers` library.

Only byte-level BPE is rebuilt (`tokenizer.ggml.model = gpt2`), which is what SmolLM2, Llama 3 and Qwen use. The
pre-tokenizers are those of the published tokenizer.json files that llama.cpp's `tokenizer.ggml.pre` names stand for.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from engine.errors import ModelError
from engine.loading.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml."
CONTROL, USER_DEFINED = 3, 4
# Words with their apostrophe endings, digits in runs of up to {digits}, punctuation, line breaks, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gguf_tokenizer(metadata: Mapping[str, Any], eos_ids: tuple[int, ...], source: str) -> Tokenizer:
    """Build the tokenizer; a kind that is not known here, or metadata that do not add up, are a ModelError."""
    if (kind := metadata.get(f"{PREFIX}model")) != "gpt2":
        raise ModelError(f"{source}: {PREFIX}model={kind!r} is not supported; only gpt2 (byte-level BPE) is")
    if absent := [key for key in (f"{PREFIX}tokens", f"{PREFIX}merges") if key not in metadata]:
        raise ModelError(f"{source}: {absent[0]} is missing")
    tokens: list[str] = metadata[f"{PREFIX}tokens"]
    named = {name: metadata.get(f"{PREFIX}{name}_token_id") for name in ("bos", "eos")}
    if outside := [name for name, index in named.items() if index is not None and index >= len(tokens)]:
        raise ModelError(f"{source}: {PREFIX}{outside[0]}_token_id is outside the vocabulary of {len(tokens)}")

    pre = metadata.get(f"{PREFIX}pre", "default")
    backend = _bpe(tokens, metadata[f"{PREFIX}merges"], pre, source)
    _add_tokens(backend, tokens, metadata.get(f"{PREFIX}token_type", []))
    if named["bos"] is not None and metadata.get(f"{PREFIX}add_bos_token", pre == "llama-bpe"):
        bos = tokens[named["bos"]]
        backend.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, named["bos"])])
    special_tokens = {f"{name}_token": tokens[index] for name, index in named.items() if index is not None}
    return Tokenizer(backend, eos_ids, metadata.get("tokenizer.chat_template"), special_tokens)


def _bpe(tokens: list[str], merges: list[str], pre: str, source: str) -> Backend:
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        backend = Backend(models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # the tokenizers library raises a bare Exception
        raise ModelError(f"{source}: {PREFIX}merges do not fit the vocabulary ({error})") from error
    backend.pre_tokenizer = _pre_tokenizer(pre, source)
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend


def _add_tokens(backend: Backend, tokens: list[str], types: list[int]) -> None:
    """Tokens that are taken whole wherever they stand in a text; control tokens are left out when decoding."""
    typed = list(zip(tokens, types, strict=False))
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in typed if k == CONTROL])
    backend.add_tokens([AddedToken(t, normalized=False) for t, k in typed if k == USER_DEFINED])


def _pre_tokenizer(pre: str, source: str) -> pre_tokenizers.PreTokenizer:
    match pre:
        case "smollm":
            steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        case "gpt-2" | "default":
            steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
        case "qwen2" | "llama-bpe":
            words = WORDS.format(digits="{1,3}" if pre == "llama-bpe" else "")
            steps = [
                pre_tokenizers.Split(Regex(words), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        case _:
            known = "smollm, gpt-2, default, qwen2, llama-bpe"
            raise ModelError(f"{source}: {PREFIX}pre={pre!r} is not supported; supported are {known}")
    return pre_tokenizers.Sequence(steps)
