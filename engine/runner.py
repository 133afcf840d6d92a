"""From scheduled sequences to tokens on the device: upload, forward pass (a CUDA graph where there is one), sampling.

Nothing here waits for the GPU, except a request for log-probabilities: `launch` enqueues and returns a `Pending`. Under
tensor parallelism every rank has a runner: rank 0's tells the others' what to run (`on_every_rank`) and draws for all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

from engine import inputs
from engine.batch import Batch, LayerCache, Stream
from engine.config import EngineConfig
from engine.graphs import GraphCache, GraphKey
from engine.inputs import Layout, Staging
from engine.kernels.step import advance, publish
from engine.launch import Launch, Pending
from engine.model import Model, hidden, logits, next_token
from engine.ops import Ops
from engine.parallel.mirror import Mirror, on_every_rank
from engine.parallel.ranks import Ranks
from engine.ranges import span
from engine.request import SamplingParams, TokenLogprobs
from engine.sampling import SamplingBatch, on_device, penalise, sample, token_logprobs
from engine.scheduler import Scheduled
from engine.sizes import PREFILL_GRAPH_SEQS, bucket_sizes, mixed_sizes, prefill_sizes, round_up, table_widths
from engine.variant import Variant


class Runner:
    """Owns the device state of running sequences: step inputs, newest tokens, graphs."""

    def __init__(
        self, model: Model, variant: Variant, caches: list[LayerCache], config: EngineConfig, ranks: Ranks
    ) -> None:
        self.model, self.variant = model, variant
        self.ops, self.prompt_ops = variant.ops, variant.prompt_ops or variant.ops
        self.caches, self.config, self.ranks = caches, config, ranks
        self.mirror: Mirror | None = None
        self.device = torch.device(config.device)
        cuda = self.device.type == "cuda"
        self.graphs = GraphCache(cuda and variant.runtime.cuda_graphs)
        ranks.before_leaving(self.graphs.clear)
        self.decode_sizes = bucket_sizes(config.max_num_seqs)
        budget, layer_weights = config.max_num_batched_tokens, model.weights.layers[0].num_weights
        self.prefill_sizes = prefill_sizes(budget, layer_weights)
        self.prefill_seq_sizes = bucket_sizes(min(PREFILL_GRAPH_SEQS, config.max_num_seqs))
        self.mixed_sizes = mixed_sizes(budget, layer_weights, config.max_num_seqs)
        self.table_widths = table_widths(config.max_model_len, config.block_size)
        self.table_width = self.table_widths[-1]
        # Mixed steps are padded beyond what a step takes.
        tokens, seqs = budget + config.max_num_seqs, config.max_num_seqs + PREFILL_GRAPH_SEQS
        self.staging = Staging(inputs.packed_size(tokens, seqs, self.table_width), self.device)
        self.dummy_row = config.max_num_seqs
        self.last_token_R = torch.zeros(config.max_num_seqs + 1, dtype=torch.int64, device=self.device)
        # Rank 0's newest draw; elsewhere, where to put it.
        self._sampled = torch.zeros(config.max_num_seqs, dtype=torch.int64, device=self.device)
        self._out = [torch.zeros(config.max_num_seqs, dtype=torch.int64, pin_memory=cuda) for _ in range(3)]
        self._turn = 0
        # The decode step whose inputs the device has, moved on by itself; None where it has others.
        self._uploaded: object = None

    @property
    def num_blocks(self) -> int:
        """Pages of the KV cache."""
        return self.caches[0].k.shape[0]

    def launch(self, decodes: list[Scheduled], prefills: list[Scheduled]) -> Pending:
        """Enqueue one step."""
        decodes = inputs.longest_first(decodes)
        items = [*decodes, *prefills]
        sampling = [item for item in items if item.samples]
        params = [item.sequence.sampling for item in sampling]
        tokens_only = not any(p.needs_logits for p in params)
        with torch.inference_mode():
            if prefills:
                step = self._prompt_launch(decodes, prefills, tokens_only)
            else:
                step = self._decode_launch(decodes, tokens_only)
            tokens, logits_BV = self.run(step)
            logprobs: list[TokenLogprobs | None] | None = None
            if not tokens_only and logits_BV is not None:
                tokens, logprobs = self._sample(sampling, logits_BV[: len(sampling)])
            return self._read_back(sampling, tokens, logprobs)

    @on_every_rank
    def run(self, step: Launch) -> tuple[Tensor | None, Tensor | None]:
        """Upload a step's inputs and run it; (tokens, logits), of which one is None, or both."""
        if step.packed is not None:
            if self.ranks.rank > 0:
                self.staging.next()[: step.packed.size] = step.packed
            self.staging.upload(step.packed.size)
        if step.graphed:
            return self._replay(step.layout, step.tokens_only)
        if step.layout.decode_only:
            return self._decode_step(step.layout, step.tokens_only)
        return self._prompt_step(step.layout, step.num_logit_rows, step.max_query_len, step.tokens_only)

    @on_every_rank
    def logits(self, batch: Batch) -> Tensor:
        """Logits of a batch made by hand, on any device; keys and values go to the pages that it names."""
        with torch.inference_mode():
            ops = self.ops if batch.cu_seqlens_B1 is None else self.prompt_ops
            return logits(self.model, ops, hidden(self.model, ops, batch.to(self.device), self.caches))

    @on_every_rank
    def set_token(self, row: int, token: int) -> None:
        """Make a token the newest of the sequence in that row."""
        self.last_token_R[row] = token

    @on_every_rank
    def fill_with_noise(self, seed: int) -> None:
        """Give every page values of the size that keys and values have: for benchmarks, whose contexts are not real."""
        generator = torch.Generator(self.device).manual_seed(seed)
        for cache in self.caches:
            cache.k.normal_(generator=generator)
            cache.v.normal_(generator=generator)

    @on_every_rank
    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Capture the decode graphs of greedy traffic, for every context length, ahead of their first use, and replay
        each once on padding: its first launch also sends it to the GPU."""
        sizes = {round_up(num_seqs, self.decode_sizes) for num_seqs in batch_sizes} if self.graphs.enabled else set()
        for size in sorted(size for size in sizes if size is not None):
            for width in self.table_widths:
                layout = Layout(size, size, size, width)
                self._ensure_captured(layout, tokens_only=True)
                self._replay_padding(layout, tokens_only=True)

    @on_every_rank
    def warm_up_all(self) -> None:
        """Capture every graph that greedy traffic can ask for, and run what has none once, on padding.

        Mixed steps have graphs from here alone: most shapes come too seldom to pay for a capture. Those that fit none
        run as they are; their kernels are compiled by the number of decodes and by the number of tokens.
        """
        budget, most = self.config.max_num_batched_tokens, self.config.max_num_seqs
        self.warm_up(self.decode_sizes)
        for num_tokens in sorted({*self.prefill_sizes, budget}) if self.graphs.enabled else ():
            for num_seqs in self.prefill_seq_sizes:
                self._ensure_captured(Layout(num_tokens, num_seqs, 0, self.table_width), tokens_only=True)
        for layout in self._mixed_layouts() if self.graphs.enabled else ():
            self._ensure_captured(layout, tokens_only=True)
        prompts = [*(2**power for power in range(budget.bit_length()) if 2**power < budget), budget - 1]
        for num_decode, num_prefill in [*((n, 1) for n in range(1, most)), *((1, n) for n in prompts if most > 1)]:
            self._run_padding(Layout(num_decode + num_prefill, num_decode + 1, num_decode, self.table_width))

    @on_every_rank
    def run_largest(self) -> None:
        """One step of the largest size on padding, the largest graphs and the largest draw, to see their memory use."""
        size = self.config.max_num_seqs
        if self.graphs.enabled:
            self._ensure_captured(Layout(size, size, size, self.table_width), tokens_only=True)
            budget = self.config.max_num_batched_tokens
            self._ensure_captured(Layout(budget, self.prefill_seq_sizes[-1], 0, self.table_width), tokens_only=True)
            # What ran before the captures, on a stream of its own, would count twice.
            torch.cuda.empty_cache()
        self._run_padding(Layout(self.config.max_num_batched_tokens, self.config.max_num_seqs, 0, self.table_width))
        if self.ranks.rank == 0:
            self._draw_largest()

    def _draw_largest(self) -> None:
        # Sorting and noise take several times what the logits do.
        size, device = self.config.max_num_seqs, self.device
        params = [SamplingParams(temperature=1.0, top_p=0.9)] * size
        shape = size, self.model.config.vocab_size
        with torch.inference_mode():
            logits_BV = torch.zeros(shape, dtype=self.model.weights.embed_VH.dtype, device=device)
            sample(logits_BV, params, SamplingBatch.of(params, [0] * size, [0] * size, device))

    @contextmanager
    def _padded(self, layout: Layout) -> Iterator[None]:
        """Inside the block a step of this shape computes nothing but padding."""
        self._uploaded = None
        host = self.staging.next()
        if layout.decode_only:
            packed = inputs.fill_decode(host, layout, [], self.dummy_row)
        else:
            packed = inputs.fill_prompts(host, layout, [], [], self.config.block_size, self.dummy_row)
        with torch.inference_mode():
            self.staging.upload(packed.size)
            yield

    def _replay_padding(self, layout: Layout, tokens_only: bool) -> None:
        with self._padded(layout):
            self._replay(layout, tokens_only)

    def _run_padding(self, layout: Layout) -> None:
        with self._padded(layout):
            self._full_step(layout, tokens_only=True)

    @on_every_rank
    def forget_graphs(self) -> None:
        """Drop all graphs; the next steps capture anew."""
        self.graphs.clear()

    @on_every_rank
    def capture_anew(self) -> None:
        """Capture every graph that there is once more and replay it on padding: a trace names what it saw captured."""
        keys = list(self.graphs.graphs)
        self.forget_graphs()
        for layout, tokens_only in keys:
            self._ensure_captured(layout, tokens_only)
            self._replay_padding(layout, tokens_only)

    # Decode-only steps.

    def _decode_layout(self, decodes: list[Scheduled]) -> Layout:
        size = len(decodes)
        if self.graphs.enabled:
            size = round_up(size, self.decode_sizes) or size
        width = round_up(max(len(item.sequence.blocks) for item in decodes), self.table_widths)
        return Layout(size, size, size, width or self.table_width)

    def _decode_launch(self, decodes: list[Scheduled], tokens_only: bool) -> Launch:
        layout = self._decode_layout(decodes)
        if self.graphs.enabled:
            self._ensure_captured(layout, tokens_only)
        else:
            self.graphs.fall_back("CUDA graphs are off")
        # Every decode step moves its rows on by itself: only a changed batch or a new block needs an upload.
        wanted = (
            layout,
            [(item.sequence.request_id, item.sequence.row, len(item.sequence.blocks)) for item in decodes],
        )
        packed = None
        if wanted != self._uploaded:
            packed = inputs.fill_decode(self.staging.next(), layout, decodes, self.dummy_row)
            self._uploaded = wanted
        return Launch(layout, tokens_only, self.graphs.enabled, packed)

    def _decode_step(self, layout: Layout, tokens_only: bool) -> tuple[Tensor | None, Tensor | None]:
        fields = layout.fields(self.staging.device_buffer)
        tokens, indices, context_lens, slots = advance(
            fields["rows"], fields["positions"], fields["tables"], self.last_token_R, self.config.block_size
        )
        batch = Batch(tokens, indices, slots, fields["tables"], context_lens, layout.num_seqs)
        return self._finish(self.ops, hidden(self.model, self.ops, batch, self.caches), fields["rows"], tokens_only)

    # Steps with prefill chunks in them.

    def _prompt_launch(self, decodes: list[Scheduled], prefills: list[Scheduled], tokens_only: bool) -> Launch:
        self._uploaded = None
        num_tokens = sum(item.length for item in prefills)
        num_logit_rows = len(decodes) + sum(item.samples for item in prefills)
        max_query_len = max(item.length for item in prefills)
        layout = self._graphed_layout(num_tokens, len(prefills), len(decodes), tokens_only)
        graphed = layout is not None
        if layout is None:
            num_seqs = len(decodes) + len(prefills)
            layout = Layout(len(decodes) + num_tokens, num_seqs, len(decodes), self.table_width)
        else:
            self._ensure_captured(layout, tokens_only)
        host = self.staging.next()
        packed = inputs.fill_prompts(host, layout, decodes, prefills, self.config.block_size, self.dummy_row)
        return Launch(layout, tokens_only, graphed, packed, num_logit_rows, max_query_len)

    def _graphed_layout(self, num_tokens: int, num_seqs: int, num_decode: int, tokens_only: bool) -> Layout | None:
        """The padded shape whose graph serves this step; None, with the reason counted, where none does.

        `num_tokens` and `num_seqs` are those of prompts.
        """
        if not self.graphs.enabled:
            self.graphs.fall_back("CUDA graphs are off")
            return None
        if num_decode:
            return self._mixed_layout(num_tokens, num_seqs, num_decode, tokens_only)
        return self._prefill_layout(num_tokens, num_seqs)

    def _mixed_layout(self, num_tokens: int, num_seqs: int, num_decode: int, tokens_only: bool) -> Layout | None:
        decodes, seqs, tokens = map(round_up, (num_decode, num_seqs, num_tokens), self.mixed_sizes)
        if decodes and seqs and tokens:
            layout = Layout(decodes + tokens, decodes + seqs, decodes, self.table_width)
            if GraphKey(layout, tokens_only) in self.graphs.graphs:
                return layout
        self.graphs.fall_back("prefill chunks and decodes in one step")
        return None

    def _mixed_layouts(self) -> list[Layout]:
        """Every shape that mixed steps are padded to."""
        return [
            Layout(decodes + tokens, decodes + seqs, decodes, self.table_width)
            for decodes, seqs, tokens in product(*self.mixed_sizes)
        ]

    def _prefill_layout(self, num_tokens: int, num_seqs: int) -> Layout | None:
        full = num_tokens == self.config.max_num_batched_tokens
        tokens = num_tokens if full else round_up(num_tokens, self.prefill_sizes)
        seqs = round_up(num_seqs, self.prefill_seq_sizes)
        if tokens is None:
            self.graphs.fall_back(f"a prefill of more than {self.prefill_sizes[-1]} tokens that does not fill the step")
        elif seqs is None:
            self.graphs.fall_back(f"a prefill of more than {self.prefill_seq_sizes[-1]} sequences")
        else:
            return Layout(tokens, seqs, 0, self.table_width)
        return None

    def _prompt_step(
        self, layout: Layout, num_logit_rows: int, max_query_len: int, tokens_only: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        fields = layout.fields(self.staging.device_buffer)
        batch = inputs.prompt_batch(self.staging.device_buffer, layout, num_logit_rows, max_query_len)
        if layout.num_decode:
            # Decode rows always sample and come first, so the first of `rows` are theirs.
            rows = fields["rows"][: layout.num_decode]
            batch.token_ids_T[: layout.num_decode] = self.last_token_R[rows].to(batch.token_ids_T.dtype)
        stream = hidden(self.model, self.prompt_ops, batch, self.caches)
        if num_logit_rows == 0:
            return None, None
        return self._finish(self.prompt_ops, stream, fields["rows"][:num_logit_rows], tokens_only)

    # What both share.

    def _finish(
        self, ops: Ops, stream: Stream, rows_B: Tensor, tokens_only: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        if not tokens_only:
            return None, logits(self.model, ops, stream)
        tokens = next_token(self.model, ops, stream)
        publish(tokens, rows_B, self.last_token_R)
        return tokens, None

    def _ensure_captured(self, layout: Layout, tokens_only: bool) -> None:
        if GraphKey(layout, tokens_only) not in self.graphs.graphs:
            self.capture(layout, tokens_only)

    @on_every_rank
    def capture(self, layout: Layout, tokens_only: bool) -> None:
        """Capture the graph of a padded shape."""
        with self._padded(layout):
            self.graphs.capture(GraphKey(layout, tokens_only), partial(self._full_step, layout, tokens_only))

    def _full_step(self, layout: Layout, tokens_only: bool) -> tuple[Tensor | None, Tensor | None]:
        """What a step of this shape computes at most: every row of it."""
        if layout.decode_only:
            return self._decode_step(layout, tokens_only)
        return self._prompt_step(layout, layout.num_seqs, layout.num_tokens - layout.num_decode, tokens_only)

    def _replay(self, layout: Layout, tokens_only: bool) -> tuple[Tensor | None, Tensor | None]:
        graph = self.graphs.replay(GraphKey(layout, tokens_only))
        return graph.tokens, graph.logits

    def _sample(self, sampling: list[Scheduled], logits_BV: Tensor) -> tuple[Tensor, list[TokenLogprobs | None] | None]:
        with span("phase/sample"):
            sequences = [item.sequence for item in sampling]
            params = [sequence.sampling for sequence in sequences]
            positions = [item.start + item.length for item in sampling]
            batch = SamplingBatch.of(params, [s.seed for s in sequences], positions, self.device)
            rows = [sequence.row for sequence in sequences]
            self._sampled = tokens = sample(self._penalised(sampling, rows, logits_BV), params, batch)
            self.publish_sampled(rows)
            if all(p.logprobs is None for p in params):
                return tokens, None
            if wait := self._waiter():
                wait()
            return tokens, token_logprobs(logits_BV, tokens, params)

    @on_every_rank
    def publish_sampled(self, rows: list[int]) -> None:
        """Feed the tokens that rank 0 has drawn back on every rank."""
        tokens = self.ranks.broadcast(self._sampled[: len(rows)])
        publish(tokens, on_device(rows, self.device, torch.int32), self.last_token_R)

    def _penalised(self, sampling: list[Scheduled], rows: list[int], logits_BV: Tensor) -> Tensor:
        """The logits, lowered for tokens that a sequence holds already where its request wants that."""
        asking = [i for i, item in enumerate(sampling) if item.sequence.sampling.repetition_penalty != 1]
        if not asking:
            return logits_BV
        items = [sampling[i] for i in asking]
        texts = [item.sequence.tokens for item in items]
        longest = max(map(len, texts))
        padded = [tokens + tokens[:1] * (longest - len(tokens)) for tokens in texts]
        seen = on_device(np.array(padded), self.device)
        # The newest token of a decoding sequence may be known on the device only.
        unread = [len(item.sequence.tokens) < item.start + item.length for item in items]
        index = on_device(asking, self.device)
        asking_rows = on_device([rows[i] for i in asking], self.device)
        newest = torch.where(on_device(unread, self.device), self.last_token_R[asking_rows], seen[:, 0])
        penalty = on_device([item.sequence.sampling.repetition_penalty for item in items], self.device)
        penalised = penalise(logits_BV[index].float(), torch.cat((seen, newest[:, None]), dim=1), penalty)
        return logits_BV.float().index_copy(0, index, penalised)

    def _read_back(
        self, sampling: list[Scheduled], tokens: Tensor | None, logprobs: list[TokenLogprobs | None] | None
    ) -> Pending:
        self._turn = (self._turn + 1) % len(self._out)
        host = self._out[self._turn]
        if tokens is None or not sampling:
            return Pending([], host, None)
        host[: len(sampling)].copy_(tokens[: len(sampling)], non_blocking=True)
        return Pending(sampling, host, self._waiter(), logprobs)

    def _waiter(self) -> Callable[[], None] | None:
        """How to wait for what has been enqueued so far; None where it is done already."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event.synchronize if self.mirror is None else partial(self.mirror.wait, event)
