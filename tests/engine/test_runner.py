"""Steps in padded layouts, as CUDA graphs replay them: the graphs here are the captured functions, run again."""

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from engine import Engine, SamplingParams, Variant
from engine.batch import Batch, Stream
from engine.graphs import GraphKey
from engine.inputs import Layout
from engine.launch import Launch
from engine.loading import LoadedModel
from engine.loading.random import random_weights
from engine.model import Model, hidden
from engine.ops import Ops
from engine.sizes import PREFILL_GRAPH_SEQS
from tests.engine.replay import graph_engine
from tests.engine.tiny import CONFIG, GREEDY, PROMPTS, SHARPNESS, expected, prompt_of, run, serve, tiny_engine
from tests.shipped import VARIANTS


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
@pytest.mark.parametrize(
    "config",
    [{}, {"max_num_seqs": 3}, {"max_num_batched_tokens": 70}, {"num_kv_blocks": 12}, {"overlap": False}],
    ids=str,
)
def test_padded_steps_give_the_tokens_of_exact_ones(variant: Any, config: dict[str, Any]) -> None:
    """Prompts, mixed steps and decodes at batch sizes that no graph has exactly; each request is served twice."""
    engine = graph_engine(variant=variant, **config)
    for _ in range(2):
        assert serve(engine, PROMPTS, GREEDY) == expected(PROMPTS)
    assert engine.runner.graphs.num_hits > GREEDY.max_tokens


def test_sampled_steps_replay_too() -> None:
    """The graph ends with the logits there; greedy requests in the same batch do not notice."""
    sampled = SamplingParams(temperature=1.0, seed=5, max_tokens=24, ignore_eos=True)
    engine = graph_engine()
    ids = [engine.add_request(p, s) for p in PROMPTS[:3] for s in (GREEDY, sampled)]
    outputs = run(engine)
    answers = [outputs[i].token_ids for i in ids]
    assert answers[::2] == expected(PROMPTS[:3])
    assert answers[1::2] == expected(PROMPTS[:3], sampled)


def test_an_unchanged_batch_uploads_only_when_a_block_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 tokens after a prompt of 17: a prefill, the first decode, and the block border at 32."""
    engine = graph_engine()
    engine.generate([prompt_of(3)], GREEDY)
    uploads = []
    upload = engine.runner.staging.upload
    monkeypatch.setattr(engine.runner.staging, "upload", lambda size: (uploads.append(size), upload(size)))
    assert serve(engine, [PROMPTS[3]], GREEDY) == expected([PROMPTS[3]])
    # Two captures: their padding is uploaded as well.
    assert len(uploads) - engine.runner.graphs.num_captures <= 3


@pytest.mark.parametrize("build", [graph_engine, tiny_engine])
def test_a_batch_is_uploaded_again_after_a_prompt_that_came_and_went_within_a_step(build: Any) -> None:
    """The same sequences, rows and pages as before it; but the prompt's step has overwritten them on the device."""
    engine = build()
    ids = [engine.add_request(PROMPTS[4], GREEDY)]
    for _ in range(4):
        engine.step()
    ids.append(engine.add_request(PROMPTS[2], replace(GREEDY, max_tokens=1)))
    outputs = run(engine)
    assert [outputs[i].token_ids for i in ids] == [expected([PROMPTS[4]])[0], expected([PROMPTS[2]])[0][:1]]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingParams(temperature=1.0, seed=5, max_tokens=24)], ids=["greedy", "drawn"]
)
def test_rows_decode_longest_first_whoever_comes_and_goes(
    overlap: bool, sampling: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short prompts before long ones, finished, aborted and preempted requests: the order holds, so do the tokens."""
    engine = graph_engine(overlap=overlap, num_kv_blocks=16, max_num_seqs=5, max_num_batched_tokens=40)
    launched: list[list[int]] = []
    launch = engine.runner.run

    def watched(step: Launch) -> Any:
        if step.packed is not None:
            fields = step.layout.fields(step.packed)
            positions = fields["positions"][: step.layout.num_decode].tolist()
            launched.append([position for position in positions if position >= 0])
        return launch(step)

    monkeypatch.setattr(engine.runner, "run", watched)
    ids = [engine.add_request(prompt, sampling) for prompt in PROMPTS[:5]]
    gone = engine.add_request(prompt_of(50), sampling)
    finished = {}
    for at in range(400):
        if at == 6:
            ids += [engine.add_request(prompt, sampling) for prompt in PROMPTS[5:]]
        if at == 9:
            engine.abort(gone)
        finished |= {output.request_id: output for output in engine.step() if output.finished}
        engine.check_integrity()
    assert [finished[i].token_ids for i in ids] == expected(PROMPTS, sampling)
    assert finished[gone].finish_reason == "abort"
    assert engine.snapshot()["preemptions"] > 0
    assert max(map(len, launched)) > 2
    assert all(positions == sorted(positions, reverse=True) for positions in launched)


def test_every_step_without_a_graph_has_its_reason() -> None:
    """Hits and reasons add up to the steps."""
    engine = graph_engine(max_num_batched_tokens=100)
    serve(engine, [*PROMPTS, prompt_of(200)], GREEDY)
    figures = engine.snapshot()
    reasons = {name: value for name, value in figures.items() if name.startswith("no graph: ")}
    assert "no graph: prefill chunks and decodes in one step" in reasons
    assert {key.layout.kind for key in engine.runner.graphs.graphs} == {"prefill", "decode"}, "none in passing"
    assert figures["graph_replays"] + sum(reasons.values()) == figures["steps"]


def test_more_prompts_than_a_graph_holds_are_a_reason() -> None:
    most = PREFILL_GRAPH_SEQS
    engine = graph_engine(max_num_seqs=most + 1, num_kv_blocks=100)
    prompts = [prompt_of(3, seed=i) for i in range(most + 1)]
    serve(engine, prompts, replace(GREEDY, max_tokens=2))
    assert engine.snapshot()[f"no graph: a prefill of more than {most} sequences"] == 1


def test_a_step_that_is_full_replays_a_graph_whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunks of a long prompt need no padding; what is left at its end would, and has no graph."""
    monkeypatch.setattr("engine.sizes.PREFILL_GRAPH_TOKENS", 64)
    monkeypatch.setattr("engine.sizes.LAUNCH_BOUND_PRODUCTS", 0)
    engine = graph_engine(max_num_batched_tokens=100)
    prompt = prompt_of(100 + 90)
    assert serve(engine, [prompt], GREEDY) == expected([prompt])
    assert [key.layout.num_tokens for key in engine.runner.graphs.graphs if key.layout.kind == "prefill"] == [100]
    assert engine.snapshot()["no graph: a prefill of more than 64 tokens that does not fill the step"] == 1


def test_forgotten_graphs_are_captured_anew() -> None:
    """In the middle of a batch, as a trace does it."""
    engine = graph_engine()
    ids = [engine.add_request(prompt, GREEDY) for prompt in PROMPTS[:3]]
    for _ in range(5):
        engine.step()
    before = engine.runner.graphs.num_captures
    engine.runner.forget_graphs()
    outputs = run(engine)
    assert [outputs[i].token_ids for i in ids] == expected(PROMPTS[:3])
    assert engine.runner.graphs.num_captures > before


def test_a_trace_captures_the_graphs_that_there_are_and_replays_each() -> None:
    """Not one more or less, and the batch goes on."""
    engine = graph_engine()
    ids = [engine.add_request(prompt, GREEDY) for prompt in PROMPTS[:3]]
    for _ in range(5):
        engine.step()
    graphs = engine.runner.graphs
    keys, captures, hits = set(graphs.graphs), graphs.num_captures, graphs.num_hits
    engine.runner.capture_anew()
    assert set(graphs.graphs) == keys
    assert (graphs.num_captures - captures, graphs.num_hits - hits) == (len(keys), len(keys))
    outputs = run(engine)
    assert [outputs[i].token_ids for i in ids] == expected(PROMPTS[:3])


@pytest.mark.parametrize("build", [graph_engine, tiny_engine])
def test_decodes_have_the_narrowest_table_that_holds_their_contexts(build: Any) -> None:
    """One tile of keys is 128 tokens; a wider table would have attention divide what there is not."""
    engine = build()
    prompts = [prompt_of(3), prompt_of(120)]
    ids = [engine.add_request(prompt, GREEDY) for prompt in prompts]
    widths = []
    run_step = engine.runner.run
    engine.runner.run = lambda step: widths.append((step.layout.decode_only, step.layout.table_width)) or run_step(step)
    outputs = run(engine)
    assert [outputs[i].token_ids for i in ids] == expected(prompts)
    decodes = [width for decode_only, width in widths if decode_only]
    # The first token is the prompt's; the last one's keys are never written. At 128 tokens the page of the next is due.
    assert decodes == [128 // 16] * 8 + [256 // 16] * (GREEDY.max_tokens - 1 - 8)


@pytest.mark.parametrize("build", [graph_engine, tiny_engine])
def test_attention_is_told_how_long_the_longest_chunk_may_be(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU starts programs for so many rows of each sequence: with less, the rest would have no answer."""
    answers, told = expected(PROMPTS), []

    def watched(model: Model, ops: Ops, batch: Batch, caches: Any) -> Stream:
        if batch.cu_seqlens_B1 is None:
            assert batch.max_query_len == 1
        else:
            chunks = batch.cu_seqlens_B1.diff()
            told.append((batch.max_query_len, int(chunks.max()), len(batch.token_ids_T) - batch.num_decode))
        return hidden(model, ops, batch, caches)

    monkeypatch.setattr("engine.runner.hidden", watched)
    engine = build(max_num_batched_tokens=100)
    if build is graph_engine:
        engine.runner.warm_up_all()
    assert serve(engine, PROMPTS, GREEDY) == answers
    assert len(told) > 1
    for most, longest, num_tokens in told:
        # What is captured serves a single chunk of all its tokens.
        assert most in ({longest} if build is tiny_engine else {longest, num_tokens})
        assert most >= longest


def test_without_graphs_every_step_says_so_and_is_padded_by_nothing() -> None:
    engine = tiny_engine()
    sizes = set()
    run_step = engine.runner.run
    engine.runner.run = lambda step: sizes.add(step.layout.num_seqs) or run_step(step)  # type: ignore[method-assign]
    serve(engine, PROMPTS[:3], GREEDY)
    assert sizes == {3}
    figures = engine.snapshot()
    assert figures["no graph: CUDA graphs are off"] == figures["steps"]


def test_an_adopted_request_goes_on_from_its_last_token() -> None:
    engine = tiny_engine()
    prompt = prompt_of(20)
    engine.adopt(prompt, GREEDY)
    fed: list[int] = []
    step = engine.runner._decode_step

    def watched(layout: Any, tokens_only: bool) -> Any:
        fed.append(int(engine.runner.last_token_R[layout.fields(engine.runner.staging.device_buffer)["rows"][0]]))
        return step(layout, tokens_only)

    engine.runner._decode_step = watched  # type: ignore[method-assign]
    engine.step()
    assert fed == prompt[-1:]


def test_warm_up_leaves_nothing_to_capture() -> None:
    """Every batch size and context length: the decodes after it only replay."""
    engine = graph_engine(max_num_seqs=5)
    engine.runner.warm_up(range(1, 6))
    for tokens in PROMPTS[:4]:
        engine.adopt(tokens, GREEDY)
    graphs = engine.runner.graphs
    before = graphs.num_captures
    assert graphs.num_hits == before, "each was launched once"
    run(engine)
    assert graphs.num_captures == before


@pytest.mark.parametrize(
    "config", [{}, {"max_num_seqs": 3, "max_num_batched_tokens": 100}, {"max_model_len": 512}], ids=str
)
def test_nothing_is_left_to_capture_once_all_is_captured(config: dict[str, Any]) -> None:
    """Alone, in batches, as prompts come and go: whatever traffic makes of a step has its graph, or never had one."""
    engine = graph_engine(num_kv_blocks=200, **config)
    engine.runner.warm_up_all()
    before = engine.runner.graphs.num_captures
    for size in range(1, engine.config.max_num_seqs + 1):
        for i, prompt in enumerate((PROMPTS * 2)[size : 2 * size]):
            engine.add_request(prompt, replace(GREEDY, max_tokens=3 + i))
        run(engine)
    assert engine.runner.graphs.num_captures == before > 0
    assert engine.runner.graphs.num_hits > 0


class Counting(Ops):
    """Counts the layers and heads that it ran."""

    def __init__(self) -> None:
        self.num_layers = self.num_heads = 0

    def layer(self, *args: Any) -> Stream:
        """One more."""
        self.num_layers += 1
        return super().layer(*args)

    def logits(self, *args: Any) -> Tensor:
        """The head, which a choice of tokens goes through as well."""
        self.num_heads += 1
        return super().logits(*args)

    def ran(self) -> tuple[int, int]:
        """(layers, heads) since the last call."""
        ran = self.num_layers, self.num_heads
        self.num_layers = self.num_heads = 0
        return ran


def test_steps_with_prompts_have_their_own_operations() -> None:
    """Once a prompt is in, decodes only; logits asked for by hand are of whatever the batch holds."""
    decoding, prompts = Counting(), Counting()
    engine = tiny_engine(Variant("two", decoding, prompt_ops=prompts), max_num_seqs=2)
    layers, steps = CONFIG.num_layers, GREEDY.max_tokens - 1
    assert serve(engine, PROMPTS[:1], GREEDY) == expected(PROMPTS[:1])
    assert (prompts.ran(), decoding.ran()) == ((layers, 1), (steps * layers, steps))
    one = torch.zeros(1, dtype=torch.int32)
    decode = Batch(one.long(), one, one - 1, one[:, None], one + 1, num_decode=1)
    engine.runner.logits(decode)
    assert (prompts.ran(), decoding.ran()) == ((0, 0), (layers, 1))
    engine.runner.logits(replace(decode, num_decode=0, cu_seqlens_B1=torch.tensor([0, 1], dtype=torch.int32)))
    assert (prompts.ran(), decoding.ran()) == ((layers, 1), (0, 0))


def staggered(engine: Engine) -> list[list[int]]:
    """Answers to prompts that come one or two at a time, while those before them decode."""
    ids, outputs = [], {}
    for first in range(0, len(PROMPTS), 3):
        for some in (PROMPTS[first : first + 1], PROMPTS[first + 1 : first + 3]):
            ids += [engine.add_request(prompt, GREEDY) for prompt in some]
            outputs |= {output.request_id: output for output in engine.step() if output.finished}
    outputs |= run(engine)
    return [outputs[i].token_ids for i in ids]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
def test_prompts_among_decodes_replay_what_was_captured_ahead(variant: Any) -> None:
    """Padded between the decodes and behind the prompts: each request gets the tokens that it gets alone."""
    engine = graph_engine(variant=variant, num_kv_blocks=200, max_num_seqs=11)
    engine.runner.warm_up_all()
    replayed: list[str] = []
    replay = engine.runner.graphs.replay
    engine.runner.graphs.replay = lambda key: replayed.append(key.layout.kind) or replay(key)  # type: ignore[method-assign]
    assert staggered(engine) == expected(PROMPTS)
    assert replayed.count("mixed") >= 4
    assert len(replayed) == engine.snapshot()["steps"], "every step has a graph"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["baseline", "fused"])
def test_on_a_gpu_prompts_among_decodes_get_the_tokens_of_steps_without_graphs(name: str) -> None:
    """Sharp weights in fp32, so that what padding changes in a sum does not change a choice."""
    sizes = {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "num_kv_heads": 2}
    model = replace(CONFIG, head_dim=64, **sizes)
    weights = random_weights(model, torch.float32, "cuda", seed=0)
    for layer in weights.layers:
        for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
            linear.weight_NK.mul_(SHARPNESS)
    loaded = LoadedModel(model, weights, None, "tests", "random")
    answers, mixed = [], 0
    for cuda_graphs in (True, False):
        runtime = replace(VARIANTS[name].runtime, cuda_graphs=cuda_graphs)
        engine = tiny_engine(replace(VARIANTS[name], runtime=runtime), loaded, device="cuda")
        engine.runner.warm_up_all()
        mixed += sum(key.layout.kind == "mixed" for key in engine.runner.graphs.graphs)
        answers.append(staggered(engine))
    assert mixed > 0
    assert answers[0] == answers[1]


@pytest.mark.parametrize("build", [graph_engine, tiny_engine])
def test_warming_up_all_leaves_no_trace(build: Any) -> None:
    """Mixed steps on padding, from one decode to all of them: no page is written, no request notices."""
    engine = build()
    for cache in engine.runner.caches:
        cache.k.fill_(3.0)
        cache.v.fill_(4.0)
    engine.runner.warm_up_all()
    for cache in engine.runner.caches:
        assert torch.all(cache.k == 3.0)
        assert torch.all(cache.v == 4.0)
    assert serve(engine, PROMPTS, GREEDY) == expected(PROMPTS)


def test_prompt_steps_of_every_number_of_decodes_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention splits by their number; a prompt's kernels by its tokens, up to the step's budget."""
    shapes = []
    engine = tiny_engine(max_num_seqs=6, max_num_batched_tokens=40)
    step = engine.runner._prompt_step

    def recorded(layout: Any, *rest: Any, **more: Any) -> Any:
        shapes.append((layout.num_decode, layout.num_tokens - layout.num_decode))
        return step(layout, *rest, **more)

    monkeypatch.setattr(engine.runner, "_prompt_step", recorded)
    engine.runner.warm_up_all()
    assert {decodes for decodes, _ in shapes} == {1, 2, 3, 4, 5}
    assert {tokens for decodes, tokens in shapes if decodes == 1} == {1, 2, 4, 8, 16, 32, 39}
    assert engine.runner.graphs.num_captures == 0


def test_the_largest_step_runs_on_padding() -> None:
    """What the memory of the pool is sized by; requests afterwards do not notice."""
    for engine in (graph_engine(), tiny_engine()):
        engine.runner.run_largest()
        assert serve(engine, PROMPTS, GREEDY) == expected(PROMPTS)


@pytest.mark.parametrize("build", [graph_engine, tiny_engine])
def test_the_largest_steps_are_of_all_sequences_and_all_tokens(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes and prompts in graphs, where there are any, and a prompt step without one for as many as there may be."""
    engine = build(max_num_seqs=20, max_num_batched_tokens=300)
    steps: list[Layout] = []
    step = engine.runner._full_step
    monkeypatch.setattr(
        engine.runner, "_full_step", lambda layout, tokens_only: steps.append(layout) or step(layout, tokens_only)
    )
    engine.runner.run_largest()
    prompts, width = Layout(300, 20, 0, 256 // 16), 256 // 16
    assert steps[-1] == prompts
    assert set(engine.runner.graphs.graphs) == (
        {GraphKey(Layout(20, 20, 20, width), True), GraphKey(Layout(300, PREFILL_GRAPH_SEQS, 0, width), True)}
        if build is graph_engine
        else set()
    )


def test_the_largest_draw_is_of_every_sequence_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its noise and sorting take more than the logits, and must not be the cache's memory."""
    engine, draw = tiny_engine(), Mock()
    monkeypatch.setattr("engine.runner.sample", draw)
    engine.runner.run_largest()
    logits_BV, params, batch = draw.call_args.args
    assert logits_BV.shape == (engine.config.max_num_seqs, CONFIG.vocab_size)
    assert not any(p.greedy for p in params)
    assert len(params) == len(batch.seed) == engine.config.max_num_seqs


def test_padding_writes_to_no_page() -> None:
    """A captured step on padding alone leaves the cache as it was."""
    engine = graph_engine()
    for cache in engine.runner.caches:
        cache.k.fill_(3.0)
        cache.v.fill_(4.0)
    engine.runner.run_largest()
    engine.runner.warm_up(range(1, 9))
    for cache in engine.runner.caches:
        assert torch.all(cache.k == 3.0)
        assert torch.all(cache.v == 4.0)
