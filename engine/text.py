"""A request's text as it grows, cut where a stop string begins."""

from engine.loading.tokenizer import StreamDecoder


class TextStream:
    """Text of generated tokens. What has been shown is never taken back.

    `text` lags behind the tokens while its end is half a character, or may yet turn out to be the start of a stop
    string. `stopped` says that a stop string was found; the text is then final.
    """

    def __init__(self, decoder: StreamDecoder, stops: tuple[str, ...] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._decoder = decoder
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._decoded = ""

    def push(self, token_id: int) -> None:
        """Add a token."""
        self._show(self._decoder.push(token_id))

    def close(self) -> None:
        """Show what was held back: no token will follow."""
        self._show(self._decoder.flush())
        self.text = self._decoded

    def _show(self, piece: str) -> None:
        if self.stopped:
            return
        # A stop string may have begun before this piece.
        start = max(0, len(self._decoded) - self._longest + 1)
        self._decoded += piece
        cuts = [at for stop in self._stops if (at := self._decoded.find(stop, start)) >= 0]
        if cuts:
            self.stopped = True
            self._decoded = self.text = self._decoded[: min(cuts)]
        else:
            self.text = self._decoded[: len(self._decoded) - self._num_undecided()]

    def _num_undecided(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = min(self._longest - 1, len(self._decoded))
        return next((n for n in range(longest, 0, -1) if self._begins_a_stop(self._decoded[-n:])), 0)

    def _begins_a_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)
