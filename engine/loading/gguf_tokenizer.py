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
    """Build the tokenizer; a kind that is not known here is a ModelError that names it."""
    if (kind := metadata.get(f"{PREFIX}model")) != "gpt2":
        raise ModelError(f"{source}: {PREFIX}model={kind!r} is not supported; only gpt2 (byte-level BPE) is")
    tokens = metadata[f"{PREFIX}tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata[f"{PREFIX}merges"]]
    pre = metadata.get(f"{PREFIX}pre", "default")
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    backend.pre_tokenizer = _pre_tokenizer(pre, source)
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    types = metadata.get(f"{PREFIX}token_type", [])
    special = [
        AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types, strict=False) if k == CONTROL
    ]
    backend.add_special_tokens(special)
    backend.add_tokens(
        [AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=False) if k == USER_DEFINED]
    )

    named = {name: metadata.get(f"{PREFIX}{name}_token_id") for name in ("bos", "eos")}
    bos_id = named["bos"]
    if bos_id is not None and metadata.get(f"{PREFIX}add_bos_token", pre == "llama-bpe"):
        bos = tokens[bos_id]
        template = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, bos_id)])
        backend.post_processor = template
    special_tokens = {f"{name}_token": tokens[index] for name, index in named.items() if index is not None}
    return Tokenizer(backend, eos_ids, metadata.get("tokenizer.chat_template"), special_tokens)


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
