"""The engine: requests in, tokens out, one step at a time."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from engine import kv_cache
from engine.block_manager import BlockManager
from engine.config import EngineConfig
from engine.errors import RequestError, UserError
from engine.loading import LoadedModel, load_model
from engine.loading.tokenizer import StreamDecoder
from engine.model import Model
from engine.ranges import span
from engine.request import FinishReason, RequestOutput, SamplingParams, SequenceState, as_tokens
from engine.rope import rope_tables
from engine.runner import Pending, Runner
from engine.scheduler import Scheduler
from engine.variant import BASELINE, Variant

logger = logging.getLogger("fusebench.engine")

Prompt = str | Sequence[int]


@dataclass
class Metrics:
    """Running totals: what one needs to say why it was slow."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_requests: int = 0
    num_failed_requests: int = 0


@dataclass
class _Live:
    """A request on its way: its scheduler state, what it has produced, its text so far."""

    sequence: SequenceState
    output: RequestOutput
    decoder: StreamDecoder | None
    stop_strings: tuple[str, ...] = field(default=())


class Engine:
    """Runs one model in one variant. Not thread-safe; several engines may live in one process."""

    def __init__(self, config: EngineConfig, variant: Variant = BASELINE, loaded: LoadedModel | None = None) -> None:
        self.config, self.variant = config, variant
        self.device = torch.device(config.device)
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.loaded = loaded or load_model(config.model, self.dtype, self.device, config.seed)
        model = self.loaded.config
        if config.max_model_len > model.max_position_embeddings:
            raise UserError(
                f"max_model_len={config.max_model_len} is beyond the model's {model.max_position_embeddings} positions"
            )
        weights = variant.prepare(self.loaded.weights, model)
        tables = rope_tables(model, config.max_model_len, self.device)
        self.model = Model(model, weights, *tables)
        num_blocks = config.num_kv_blocks or self._fitting_blocks()
        self.runner = self._runner(num_blocks)
        self.blocks = BlockManager(num_blocks, config.block_size, config.enable_prefix_caching)
        self.scheduler = Scheduler(self.blocks, config.max_num_seqs, config.max_num_batched_tokens)
        self.metrics = Metrics()
        self._live: dict[int, _Live] = {}
        self._failed: list[RequestOutput] = []
        self._ids = itertools.count()
        self._in_flight: Pending | None = None
        logger.info("variant %s replaces %s", variant.name, ", ".join(variant.replaced) or "nothing")

    def add_request(self, prompt: Prompt, sampling: SamplingParams | None = None) -> int:
        """Queue a request and return its id. One that cannot be served comes out of the next step with its error."""
        sampling = sampling or SamplingParams()
        request_id = next(self._ids)
        self.metrics.num_requests += 1
        try:
            tokens = self._encode(prompt)
            self._check_fits(len(tokens), sampling)
        except RequestError as error:
            self.metrics.num_failed_requests += 1
            prompt_ids = [] if isinstance(prompt, str) else list(prompt)
            failed = RequestOutput(request_id, prompt_ids, finish_reason="error", error=str(error))
            self._failed.append(failed)
            return request_id
        self._live[request_id] = self._begin(request_id, tokens, sampling)
        self.scheduler.add(self._live[request_id].sequence)
        return request_id

    def adopt(self, tokens: Sequence[int], sampling: SamplingParams) -> int:
        """Start a request as if all but the last of its tokens were in the cache already, and return its id.

        For benchmarks of decoding: the pages hold whatever they hold, and a step costs the same. Raises RequestError
        where there is no room.
        """
        checked = self._encode(tokens)
        self._check_fits(len(checked), sampling)
        request_id = next(self._ids)
        live = self._begin(request_id, checked, sampling)
        self.scheduler.adopt(live.sequence)
        self.runner.last_token_R[live.sequence.row] = checked[-1]
        self._live[request_id] = live
        return request_id

    def abort_all(self) -> None:
        """End every request and wait for the step in flight; nothing comes out of them."""
        for request_id in list(self._live):
            self.abort(request_id)
        while self.has_work:
            self.step()

    def abort(self, request_id: int) -> None:
        """End a request now; what it has produced comes out of the next step. Unknown ids are ignored."""
        live = self._live.get(request_id)
        if live is not None:
            self._finish(live, "abort")
            self._failed.append(live.output)

    def step(self) -> list[RequestOutput]:
        """Launch the next step and return the requests that the step before it moved on."""
        with span(f"step/{self.metrics.num_steps}"):
            with span("phase/schedule"):
                decodes, prefills = self.scheduler.schedule()
            launched = None
            if decodes or prefills:
                self.metrics.num_steps += 1
                self.metrics.num_prompt_tokens += sum(item.length for item in prefills)
                with span("phase/forward"):
                    launched = self.runner.launch(decodes, prefills)
            due, self._in_flight = (self._in_flight, launched) if self.config.overlap else (launched, None)
            with span("phase/post"):
                return self._take_failed() + (self._collect(due) if due else [])

    @property
    def has_work(self) -> bool:
        """Whether a further step can produce anything."""
        return bool(self._live or self._failed or self._in_flight)

    def stream(self, prompts: Sequence[Prompt], sampling: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Yield a request's output each time a token has been added to it."""
        ids = {self.add_request(prompt, sampling) for prompt in prompts}
        try:
            while ids and self.has_work:
                for output in self.step():
                    if output.request_id in ids:
                        yield output
                        if output.finished:
                            ids.discard(output.request_id)
        finally:
            for request_id in ids:
                self.abort(request_id)

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """Run all prompts to their end; outputs in the order of the prompts."""
        if isinstance(prompts, str):
            raise UserError("generate takes a list of prompts: put the one prompt in a list")
        each = [sampling] * len(prompts) if sampling is None or isinstance(sampling, SamplingParams) else sampling
        if len(each) != len(prompts):
            raise UserError(f"{len(prompts)} prompts but {len(each)} sampling parameters")
        ids = [self.add_request(prompt, params) for prompt, params in zip(prompts, each, strict=True)]
        outputs: dict[int, RequestOutput] = {}
        try:
            while len(outputs) < len(ids):
                outputs.update((o.request_id, o) for o in self.step() if o.finished and o.request_id in set(ids))
        finally:
            for request_id in set(ids) - set(outputs):
                self.abort(request_id)
        return [outputs[request_id] for request_id in ids]

    def check_integrity(self) -> None:
        """Raise AssertionError when the engine's books do not balance."""
        self.scheduler.check_integrity()
        tracked = {s.request_id for s in (*self.scheduler.running, *self.scheduler.waiting)}
        assert tracked == set(self._live), f"requests {tracked ^ set(self._live)} are live or scheduled, not both"

    # Building.

    def _runner(self, num_blocks: int) -> Runner:
        caches = kv_cache.allocate(self.model.config, num_blocks, self.config.block_size, self.dtype, self.device)
        return Runner(self.model, self.variant, caches, self.config)

    def _fitting_blocks(self) -> int:
        activation_bytes = 0
        if self.device.type == "cuda":
            # Largest steps and graphs over a one-block cache: what they take is not the cache's to have.
            before_bytes = torch.cuda.memory_reserved(self.device)
            self._runner(1).run_largest()
            torch.cuda.synchronize(self.device)
            activation_bytes = torch.cuda.memory_reserved(self.device) - before_bytes
            torch.cuda.empty_cache()
        return kv_cache.fitting_blocks(self.config, self.model.config, self.dtype, activation_bytes)

    # Requests.

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self.loaded.tokenizer is None:
                raise RequestError("this model has no tokenizer: give the prompt as token ids")
            return as_tokens(self.loaded.tokenizer.encode(prompt))
        tokens = as_tokens(prompt)
        vocab_size = self.loaded.config.vocab_size
        bad = next((token for token in tokens if not 0 <= token < vocab_size), None)
        if bad is not None:
            raise RequestError(f"token id {bad} lies outside the vocabulary of {vocab_size}")
        return tokens

    def _check_fits(self, num_prompt: int, sampling: SamplingParams) -> None:
        total = num_prompt + sampling.max_tokens
        asked = f"{num_prompt} prompt tokens and max_tokens={sampling.max_tokens}"
        if total > self.config.max_model_len:
            raise RequestError(f"{asked} exceed max_model_len={self.config.max_model_len}")
        # The last token's own keys and values are never needed.
        if self.blocks.blocks_for(total - 1) > len(self.blocks.blocks):
            room = len(self.blocks.blocks) * self.config.block_size
            raise RequestError(f"{asked} can never fit the KV cache of {room} tokens")

    def _begin(self, request_id: int, tokens: list[int], sampling: SamplingParams) -> _Live:
        tokenizer = self.loaded.tokenizer
        stop_ids = {stop for stop in sampling.stop if isinstance(stop, int)}
        if not sampling.ignore_eos:
            stop_ids.update(self.loaded.config.eos_token_ids)
        seed = sampling.seed if sampling.seed is not None else self.config.seed * 1_000_003 + request_id
        sequence = SequenceState(request_id, list(tokens), len(tokens), sampling, frozenset(stop_ids), seed)
        output = RequestOutput(request_id, tokens, logprobs=None if sampling.logprobs is None else [])
        strings = tuple(stop for stop in sampling.stop if isinstance(stop, str))
        return _Live(sequence, output, None if tokenizer is None else StreamDecoder(tokenizer), strings)

    # Results.

    def _take_failed(self) -> list[RequestOutput]:
        failed, self._failed = self._failed, []
        return failed

    def _collect(self, pending: Pending) -> list[RequestOutput]:
        moved = []
        token_ids = pending.token_ids()
        for i, (item, token) in enumerate(zip(pending.sampling, token_ids, strict=True)):
            sequence = item.sequence
            sequence.num_in_flight -= 1
            if sequence.finished:
                continue  # It stopped or was aborted while this token was being computed.
            live = self._live[sequence.request_id]
            if sequence.row >= 0:
                self.blocks.seal(sequence, item.start + item.length)
            sequence.tokens.append(token)
            live.output.token_ids.append(token)
            self.metrics.num_generated_tokens += 1
            if live.output.logprobs is not None and pending.logprobs is not None:
                chances = pending.logprobs[i]
                assert chances is not None
                live.output.logprobs.append(chances)
            reason = self._reason_to_stop(live, token)
            if reason:
                self._finish(live, reason)
            moved.append(live.output)
        return moved

    def _reason_to_stop(self, live: _Live, token: int) -> FinishReason | None:
        output, sequence = live.output, live.sequence
        if token in sequence.stop_token_ids:
            return "stop"
        if live.decoder is not None:
            output.text += live.decoder.push(token)
            cut = min((i for stop in live.stop_strings if (i := output.text.find(stop)) >= 0), default=-1)
            if cut >= 0:
                output.text = output.text[:cut]
                return "stop"
        return "length" if len(output.token_ids) >= sequence.sampling.max_tokens else None

    def _finish(self, live: _Live, reason: FinishReason) -> None:
        live.output.finish_reason = reason
        self.scheduler.finish(live.sequence)
        del self._live[live.output.request_id]
