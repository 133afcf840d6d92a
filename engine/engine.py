"""The engine: requests in, tokens out, one step at a time."""

import itertools
import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from engine.block_manager import BlockManager
from engine.build import build_runner
from engine.config import EngineConfig
from engine.errors import RequestError, UserError
from engine.launch import Pending
from engine.live import LiveRequest
from engine.loading import LoadedModel, load_model
from engine.metrics import Metrics
from engine.parallel.device import rank_device
from engine.parallel.followers import EngineMirror, Followers
from engine.parallel.ranks import ALONE, Ranks
from engine.parallel.shards import shard_config
from engine.parallel.sharing import share_weights
from engine.ranges import span
from engine.request import FinishReason, RequestOutput, SamplingParams, as_tokens
from engine.runner import Runner
from engine.scheduler import Scheduled, Scheduler
from engine.variant import BASELINE, Variant

logger = logging.getLogger("fusebench.engine")

Prompt = str | Sequence[int]


class Engine:
    """Runs one model in one variant. Not thread-safe; several engines may live in one process."""

    def __init__(
        self,
        config: EngineConfig,
        variant: Variant = BASELINE,
        loaded: LoadedModel | None = None,
        followers: Followers | None = None,
    ) -> None:
        """Build it on `loaded`, a whole model, or on the one that `config` names.

        An engine of several ranks starts the others itself, or shares `followers` with other engines.
        """
        if not isinstance(config, EngineConfig):
            raise UserError(f"Engine takes an EngineConfig, not {config!r}: Engine(EngineConfig(model=...))")
        if not isinstance(variant, Variant):
            raise UserError(f"variant={variant!r} is no Variant: variants.load_variant makes one of its name")
        self.config, self.variant = config, variant
        size = config.tensor_parallel_size
        self.device = rank_device(config.device, 0, size)
        if self.device.type == "cuda" and self.device.index is not None:
            # Kernels, streams and graphs go to the current device, wherever their tensors are.
            torch.cuda.set_device(self.device)
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self._own_followers = Followers(size, config.device) if size > 1 and followers is None else None
        self._mirror: EngineMirror | None = None
        try:
            self.loaded, self.runner = self._build_everywhere(loaded, followers or self._own_followers)
        except BaseException:
            if self._own_followers is not None:
                self._own_followers.abandon()
            raise
        self.model = self.runner.model
        self.blocks = BlockManager(self.runner.num_blocks, config.block_size, config.enable_prefix_caching)
        self.scheduler = Scheduler(self.blocks, config.max_num_seqs, config.max_num_batched_tokens)
        self.metrics = Metrics()
        self._live: dict[int, LiveRequest] = {}
        self._ended: list[RequestOutput] = []
        self._ids = itertools.count()
        self._in_flight: Pending | None = None
        logger.info("variant %s replaces %s", variant.name, ", ".join(variant.replaced) or "nothing")

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes of the other ranks, where there are any: then a later step raises EngineError.

        It also happens when the engine is no longer referred to, and at the end of the process.
        """
        if self._mirror is not None:
            self.runner.graphs.clear()
            self._mirror.close()
        if self._own_followers is not None:
            self._own_followers.close()

    def add_request(self, prompt: Prompt, sampling: SamplingParams | None = None) -> int:
        """Queue a request and return its id. One that cannot be served comes out of the next step with its error."""
        sampling = sampling or SamplingParams()
        request_id = next(self._ids)
        self.metrics.num_requests += 1
        try:
            tokens = self._encode(prompt)
            self._check(len(tokens), sampling)
        except RequestError as error:
            self.metrics.num_failed_requests += 1
            prompt_ids = list(prompt) if isinstance(prompt, Iterable) and not isinstance(prompt, str) else []
            failed = RequestOutput(request_id, prompt_ids, finish_reason="error", error=str(error))
            self._ended.append(failed)
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
        self._check(len(checked), sampling)
        request_id = next(self._ids)
        live = self._begin(request_id, checked, sampling)
        self.scheduler.adopt(live.sequence)
        self.runner.set_token(live.sequence.row, checked[-1])
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
            self._ended.append(live.output)

    def step(self) -> list[RequestOutput]:
        """Launch the next step and return the requests that the step before it moved on."""
        with span(f"step/{self.metrics.num_steps}"):
            with span("phase/schedule"):
                decodes, prefills = self.scheduler.schedule()
            launched = None
            if decodes or prefills:
                self.metrics.num_steps += 1
                self.metrics.num_prefilled_tokens += sum(item.length for item in prefills)
                self.metrics.num_decoded_tokens += len(decodes)
                with span("phase/forward"):
                    launched = self._launch(decodes, prefills)
            due, self._in_flight = (self._in_flight, launched) if self.config.overlap else (launched, None)
            with span("phase/post"):
                if self._live and not (launched or due or self._ended):
                    raise RuntimeError(f"the engine is stuck: nothing to launch or to collect, {self._state()}")
                return self._take_ended() + (self._collect(due) if due else [])

    @property
    def has_work(self) -> bool:
        """Whether a further step can produce anything."""
        return bool(self._live or self._ended or self._in_flight)

    def stream(self, prompts: Sequence[Prompt], sampling: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Yield a request's output each time a token has been added to it: the same object, grown.

        It drives the engine, as `generate` and `step` do: what they return of its requests it will not yield.
        """
        ids = set[int]()
        try:
            for prompt in prompts:
                ids.add(self.add_request(prompt, sampling))
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
        ids: list[int] = []
        unfinished, outputs = set[int](), dict[int, RequestOutput]()
        try:
            for prompt, params in zip(prompts, each, strict=True):
                ids.append(self.add_request(prompt, params))
                unfinished.add(ids[-1])
            while unfinished:
                for output in self.step():
                    if output.finished and output.request_id in unfinished:
                        outputs[output.request_id] = output
                        unfinished.discard(output.request_id)
        finally:
            for request_id in unfinished:
                self.abort(request_id)
        return [outputs[request_id] for request_id in ids]

    def snapshot(self) -> dict[str, float]:
        """What one needs to say why it was slow: totals since the engine was built, and the blocks in use now."""
        return self.metrics.snapshot(self.scheduler, self.runner.graphs) | {"ranks": float(self.runner.ranks.size)}

    def check_integrity(self) -> None:
        """Raise AssertionError when the engine's books do not balance."""
        self.scheduler.check_integrity()
        tracked = {s.request_id for s in (*self.scheduler.running, *self.scheduler.waiting)}
        assert tracked == set(self._live), f"requests {tracked ^ set(self._live)} are live or scheduled, not both"

    # Building.

    def _build_everywhere(self, given: LoadedModel | None, others: Followers | None) -> tuple[LoadedModel, Runner]:
        """(the model as loaded, the runner of this rank); the other ranks build theirs meanwhile."""
        if others is None:
            return self._build(given, ALONE)
        if others.ranks.size != self.config.tensor_parallel_size:
            raise UserError(
                f"tensor_parallel_size={self.config.tensor_parallel_size}, but there are {others.ranks.size} ranks"
            )
        self._mirror = others.mirror(self.config, self.variant, None if given is None else given.config)
        with self._mirror.building():
            loaded, runner = self._build(given, others.ranks)
        runner.mirror = self._mirror
        return loaded, runner

    def _build(self, given: LoadedModel | None, ranks: Ranks) -> tuple[LoadedModel, Runner]:
        """(the model as loaded, the runner of this rank)."""
        config = self.config
        loaded = given or load_model(config.model, self.dtype, self.device, config.seed, ranks)
        model, weights = loaded.config, loaded.weights
        if config.max_model_len > model.num_positions:
            raise UserError(
                f"max_model_len={config.max_model_len} is beyond the model's {model.num_positions} positions"
            )
        if given and ranks.size > 1:
            weights = share_weights(model, weights, self.dtype, ranks)
        weights = self.variant.prepare(weights, shard_config(model, ranks.size))
        if given is None:
            # What `prepare` has replaced is not needed again, and the KV cache may have its memory.
            loaded = replace(loaded, weights=weights)
        return loaded, build_runner(replace(config, device=str(self.device)), self.variant, model, weights, ranks)

    # Requests.

    def _encode(self, prompt: Prompt) -> "array[int]":
        if isinstance(prompt, str):
            if self.loaded.tokenizer is None:
                raise RequestError("this model has no tokenizer: give the prompt as token ids")
            try:
                return as_tokens(self.loaded.tokenizer.encode(prompt))
            except (TypeError, UnicodeError) as error:
                raise RequestError(f"the prompt {prompt[:40]!r} is no valid text: {error}") from error
        tokens = as_tokens(prompt)
        vocab_size = self.loaded.config.vocab_size
        packed = np.frombuffer(tokens, dtype=np.int64)
        if not (packed.min() >= 0 and packed.max() < vocab_size):
            bad = next(token for token in tokens if not 0 <= token < vocab_size)
            raise RequestError(f"token id {bad} lies outside the vocabulary of {vocab_size}")
        return tokens

    def _check(self, num_prompt: int, sampling: SamplingParams) -> None:
        if self.loaded.tokenizer is None and any(isinstance(stop, str) for stop in sampling.stop):
            raise RequestError("this model has no tokenizer: give stop tokens as ids, not as strings")
        total = num_prompt + sampling.max_tokens
        asked = f"{num_prompt} prompt tokens and max_tokens={sampling.max_tokens}"
        if total > self.config.max_model_len:
            raise RequestError(f"{asked} exceed max_model_len={self.config.max_model_len}")
        # The last token's own keys and values are never needed.
        if self.blocks.blocks_for(total - 1) > len(self.blocks.blocks):
            room = len(self.blocks.blocks) * self.config.block_size
            raise RequestError(f"{asked} can never fit the KV cache of {room} tokens")

    def _begin(self, request_id: int, tokens: "array[int]", sampling: SamplingParams) -> LiveRequest:
        return LiveRequest.begin(request_id, tokens, sampling, self.loaded, self.config.seed)

    def _state(self) -> str:
        running, waiting = len(self.scheduler.running), len(self.scheduler.waiting)
        return f"{running} requests running, {waiting} waiting, {self.blocks.num_free} blocks free"

    def _launch(self, decodes: list[Scheduled], prefills: list[Scheduled]) -> Pending:
        try:
            return self.runner.launch(decodes, prefills)
        except BaseException:
            # Else pages that nobody wrote would be shared.
            self.scheduler.take_back([*decodes, *prefills])
            raise

    # Results.

    def _take_ended(self) -> list[RequestOutput]:
        ended, self._ended = self._ended, []
        return ended

    def _collect(self, pending: Pending) -> list[RequestOutput]:
        # While the GPU computes: whoever reads these pages is launched after.
        for item in pending.sampling:
            if not item.sequence.finished and item.sequence.row >= 0:
                self.blocks.seal(item.sequence, item.start + item.length)
        moved = []
        for i, (item, token) in enumerate(zip(pending.sampling, pending.token_ids(), strict=True)):
            sequence = item.sequence
            sequence.num_in_flight -= 1
            if sequence.finished:
                continue  # It stopped or was aborted while this token was being computed.
            live = self._live[sequence.request_id]
            self.metrics.num_generated_tokens += 1
            reason = live.take(token, pending.logprobs[i] if pending.logprobs else None)
            if reason:
                self._finish(live, reason)
            moved.append(live.output)
        return moved

    def _finish(self, live: LiveRequest, reason: FinishReason) -> None:
        live.finish(reason)
        self.scheduler.finish(live.sequence)
        del self._live[live.output.request_id]
