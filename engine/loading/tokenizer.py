"""Text to token ids and back, whole or as a stream, whatever the model came from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from engine.errors import ModelError, UserError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# What a decoder writes for bytes that are no (or not yet a) UTF-8 character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A model's tokenizer; `eos_ids` are the tokens that end a text."""

    def __init__(
        self,
        backend: Backend,
        eos_ids: tuple[int, ...] = (),
        chat_template: str | None = None,
        special_tokens: dict[str, str] | None = None,
    ) -> None:
        self.eos_ids = eos_ids
        self.chat_template = chat_template
        self.backend = backend
        self._special_tokens = special_tokens or {}
        self.skipped = frozenset(id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special)

    def encode(self, text: str) -> list[int]:
        """Token ids, with a leading beginning-of-sequence token where the model wants one."""
        ids: list[int] = self.backend.encode(text).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens; bytes that are not UTF-8 become U+FFFD."""
        text: str = self.backend.decode(list(token_ids), skip_special_tokens=True)
        return text

    def apply_chat_template(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation of {"role", "content"} messages, ready for the assistant's answer."""
        if self.chat_template is None:
            raise UserError("the model has no chat template; pass the prompt as plain text")
        # Heavy, and needed for chats alone.
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, _ = render_jinja_template(
            [messages], chat_template=self.chat_template, add_generation_prompt=True, **self._special_tokens
        )
        # The template writes the special tokens itself.
        ids: list[int] = self.backend.encode(rendered[0], add_special_tokens=False).ids
        return ids

    def stream(self) -> "StreamDecoder":
        """A decoder of one sequence as its tokens arrive."""
        return StreamDecoder(self)


class StreamDecoder:
    """Text of a sequence, token by token: the pieces add up to `decode` of the whole.

    A piece is held back while it ends in half a UTF-8 character. Decoding starts a few tokens back, because a token's
    text depends on the one before it (a leading space, a character in several tokens). A stray byte can spoil the
    characters before it in `decode` of the whole; here they stay as they were shown.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_emitted = 0

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; may be empty."""
        if token_id in self._tokenizer.skipped:
            return ""
        self._window.append(token_id)
        piece = self._pending()
        if not piece or piece.endswith(REPLACEMENT):
            return ""
        self._window = self._window[self._num_emitted :]
        self._num_emitted = len(self._window)
        return piece

    def flush(self) -> str:
        """What is held back at the end of the sequence."""
        piece = self._pending()
        self._num_emitted = len(self._window)
        return piece

    def _pending(self) -> str:
        emitted = self._tokenizer.decode(self._window[: self._num_emitted])
        whole = self._tokenizer.decode(self._window)
        if not whole.startswith(emitted):
            return self._tokenizer.decode(self._window[self._num_emitted :])
        return whole[len(emitted) :]


def load_tokenizer(folder: Path, eos_ids: tuple[int, ...]) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None where the folder has none."""
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise a bare Exception for a damaged file
        raise ModelError(f"{folder}: the tokenizer cannot be read ({error}); download its files again") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise ModelError(f"{folder}: the tokenizer has no tokenizer.json form; convert it with transformers first")
    # A fine-tune's file may keep the cut and the padding of its training.
    backend.no_truncation()
    backend.no_padding()
    if not eos_ids and loaded.eos_token_id is not None:
        eos_ids = (loaded.eos_token_id,)
    # Of several templates, the one called default.
    template = loaded.get_chat_template() if loaded.chat_template else None
    return Tokenizer(backend, eos_ids, template, dict(loaded.special_tokens_map))
