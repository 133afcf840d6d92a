"""A request on its way through the engine: what the scheduler knows of it, what it has produced, its text so far."""

from array import array
from dataclasses import dataclass

from engine.loading import LoadedModel
from engine.request import FinishReason, RequestOutput, SamplingParams, SequenceState, TokenLogprobs
from engine.text import TextStream


@dataclass
class LiveRequest:
    """Turns sampled tokens into a `RequestOutput`. `text` is None for a model without a tokenizer."""

    sequence: SequenceState
    output: RequestOutput
    text: TextStream | None

    @classmethod
    def begin(
        cls, request_id: int, tokens: "array[int]", sampling: SamplingParams, loaded: LoadedModel, engine_seed: int
    ) -> "LiveRequest":
        """A request of which nothing is computed, and which owns `tokens`. Without a seed it gets its own from the
        engine's and its id."""
        stop_ids = {stop for stop in sampling.stop if isinstance(stop, int)}
        if not sampling.ignore_eos:
            stop_ids.update(loaded.config.eos_token_ids, () if loaded.tokenizer is None else loaded.tokenizer.eos_ids)
        seed = sampling.seed if sampling.seed is not None else (engine_seed * 1_000_003 + request_id) % 2**63
        sequence = SequenceState(request_id, tokens, len(tokens), sampling, frozenset(stop_ids), seed)
        output = RequestOutput(request_id, tokens[:], logprobs=None if sampling.logprobs is None else [])
        strings = tuple(stop for stop in sampling.stop if isinstance(stop, str))
        tokenizer = loaded.tokenizer
        return cls(sequence, output, None if tokenizer is None else TextStream(tokenizer.stream(), strings))

    def take(self, token: int, logprobs: TokenLogprobs | None) -> FinishReason | None:
        """Add a token; why the request ends with it, or None where it goes on. A stop token is no part of the text."""
        output, sequence = self.output, self.sequence
        sequence.tokens.append(token)
        output.token_ids.append(token)
        if output.logprobs is not None and logprobs is not None:
            output.logprobs.append(logprobs)
        if token in sequence.stop_token_ids:
            return "stop"
        if self.text is not None:
            self.text.push(token)
            output.text = self.text.text
            if self.text.stopped:
                return "stop"
        return "length" if len(output.token_ids) >= sequence.sampling.max_tokens else None

    def finish(self, reason: FinishReason) -> None:
        """No token will follow."""
        self.output.finish_reason = reason
        if self.text is not None:
            self.text.close()
            self.output.text = self.text.text
