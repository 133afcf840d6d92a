"""What nano-vLLM (bb823b3) gets wrong and this engine must not: thirteen defects, a test each, with their threads."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from engine import BASELINE, Engine, EngineConfig, ModelError, SamplingParams, build, kv_cache
from engine.loading import load_model
from engine.model import Model
from engine.ops import Ops
from engine.parallel.ranks import ALONE
from engine.rope import rope_tables
from engine.sizes import bucket_sizes
from tests.engine.checkpoints import tiny_checkpoint
from tests.engine.replay import graph_engine
from tests.engine.tiny import GREEDY, PROMPTS, expected, prompt_of, run, serve, tiny_engine, tiny_model


def test_01_a_request_is_held_to_max_model_len() -> None:
    """There, the first token past it crashes on the shape of a graph input (#106, #190)."""
    engine = graph_engine(max_model_len=50, num_kv_blocks=40)
    outputs = engine.generate([prompt_of(30), prompt_of(26), prompt_of(27)], GREEDY)
    assert [output.finish_reason for output in outputs] == ["error", "length", "error"]
    assert outputs[1].token_ids == expected([prompt_of(26)])[0]


@pytest.mark.parametrize("max_num_seqs", [1, 3, 7, 12, 100])
def test_02_any_max_num_seqs_has_a_graph(max_num_seqs: int) -> None:
    """There, sizes are multiples of 16: a batch of 12 or 100 ends in StopIteration (PR #216)."""
    assert bucket_sizes(max_num_seqs)[-1] == max_num_seqs
    engine = graph_engine(max_num_seqs=max_num_seqs, num_kv_blocks=100)
    prompts, sampling = [prompt_of(3, seed=i) for i in range(max_num_seqs)], replace(GREEDY, max_tokens=3)
    assert serve(engine, prompts, sampling) == expected(prompts, sampling)
    assert engine.runner.graphs.fallbacks.keys() <= {"a prefill of more than 16 sequences"}
    assert max(key.layout.num_seqs for key in engine.runner.graphs.graphs) == max_num_seqs


def test_03_a_request_that_can_never_fit_ends_alone() -> None:
    """There, a prompt over the pool, or a lone request that fills it, trips an assert and takes the engine along."""
    engine = tiny_engine(num_kv_blocks=3)
    too_long, would_grow_too_long, fits = engine.generate([prompt_of(60), prompt_of(40), prompt_of(20)], GREEDY)
    for output in (too_long, would_grow_too_long):
        assert output.error is not None
        assert "can never fit the KV cache of 48 tokens" in output.error
    assert fits.token_ids == expected([prompt_of(20)])[0]


def test_03_half_a_prompt_behind_a_preempted_request_holds_nobody_up() -> None:
    """There, a half-prefilled request keeps blocks that the preempted one ahead of it waits for."""
    engine = tiny_engine(num_kv_blocks=7, max_num_batched_tokens=20)
    prompts = [prompt_of(30), prompt_of(44), prompt_of(75)]
    assert serve(engine, prompts, GREEDY) == expected(prompts)
    assert engine.scheduler.num_preemptions > 0


def test_04_running_requests_get_a_token_in_every_step() -> None:
    """There, prefill always wins: while requests arrive, running ones get nothing (#73)."""
    engine = tiny_engine(max_num_batched_tokens=32)
    first = engine.add_request(PROMPTS[0], GREEDY)
    engine.step()
    lengths = []
    for i in range(12):
        engine.add_request(prompt_of(40, seed=i), GREEDY)
        lengths += [len(output.token_ids) for output in engine.step() if output.request_id == first]
    assert lengths == list(range(1, 13))
    engine.abort_all()


def test_05_a_cached_prompt_is_reused_to_its_last_whole_block() -> None:
    """There, the last full block is never reused, and a hit on the whole prompt once left nothing to compute (#144)."""
    engine = tiny_engine()
    for length, reused in ((64, 48), (65, 64), (63, 48)):
        prompt = prompt_of(length, seed=9)
        for _ in range(2):
            before = engine.blocks.num_hit_tokens
            assert serve(engine, [prompt], GREEDY) == expected([prompt])
        assert engine.blocks.num_hit_tokens - before == reused


def test_05_preemption_and_prefix_hits_go_together() -> None:
    """There, a hit after a preemption gave index errors (#207, #211, #233), and blocks in flight were hit (#208)."""
    engine = tiny_engine(num_kv_blocks=9, max_num_batched_tokens=40)
    stem = prompt_of(32)
    prompts = [stem + prompt_of(length, seed=1) for length in (5, 16, 20, 5, 31)]
    for _ in range(3):
        assert serve(engine, prompts, GREEDY) == expected(prompts)
    assert engine.scheduler.num_preemptions > 0
    assert engine.blocks.num_hit_tokens > 0


def test_06_greedy_is_allowed_and_every_end_token_ends() -> None:
    """There, temperature 0 trips an assert, so no answer can be compared (#249); and one end token only counts."""
    tokens = expected([PROMPTS[4]])[0]
    for end in (tokens[3], tokens[8]):
        config = replace(tiny_model().config, eos_token_ids=(end, 0))
        output = tiny_engine(loaded=replace(tiny_model(), config=config)).generate(
            [PROMPTS[4]], SamplingParams(temperature=0, max_tokens=24)
        )[0]
        assert output.token_ids == tokens[: tokens.index(end) + 1]


def test_07_no_kind_of_rope_is_taken_for_another(tmp_path: Path) -> None:
    """There, any rope_scaling but a theta is silently the default: Llama 3.1 answers wrongly (#167, #189)."""
    llama3 = {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    folders = {
        kind: tiny_checkpoint(tmp_path / kind, "llama", rope_parameters=parameters)
        for kind, parameters in (("llama3", llama3), ("default", {"rope_type": "default", "rope_theta": 1e4}))
    }
    tables = [rope_tables(load_model(folder, torch.float32, "cpu", 0).config, 64)[0] for folder in folders.values()]
    assert not torch.equal(*tables)
    config = (folders["llama3"] / "config.json").read_text()
    (folders["llama3"] / "config.json").write_text(config.replace('"llama3"', '"longrope"'))
    with pytest.raises(ModelError, match="longrope"):
        load_model(folders["llama3"], torch.float32, "cpu", 0)


def test_08_norms_do_not_change_their_input_in_fp32() -> None:
    """There, fp32 has no copy to convert into, so RMSNorm adds into the caller's residual (#170)."""
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(5, 24, generator=generator) for _ in range(2))
    before = x.clone(), residual.clone()
    Ops().add_rms_norm(x, residual, torch.ones(24), 1e-6)
    Ops().rms_norm(x, torch.ones(24), 1e-6)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_09_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    """There, it stays torch.empty."""
    folder = tiny_checkpoint(tmp_path, "llama")
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        Engine(EngineConfig(folder, "float32", max_model_len=64))


def test_09_an_unknown_option_is_an_error() -> None:
    """There, LLM(**kwargs) drops what it does not know."""
    unknown: dict[str, Any] = {"max_num_sequences": 4}
    with pytest.raises(TypeError, match="max_num_sequences"):
        EngineConfig("tiny", **unknown)


def test_10_engines_share_nothing_and_answers_stay_with_their_call() -> None:
    """There, one engine a machine (fixed port and shared memory), and a failed generate leaks into the next one."""
    first, second = tiny_engine(), tiny_engine()
    leaked = first.add_request(PROMPTS[5], GREEDY)
    outputs = [engine.generate(PROMPTS[1:3], GREEDY) for engine in (first, second)]
    for answers in outputs:
        assert [output.token_ids for output in answers] == expected(PROMPTS[1:3])
    assert leaked not in [output.request_id for output in outputs[0]]


def test_11_graphs_are_counted_before_the_pool_is_sized(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, the pool is sized first and graphs take what is not there. Here, what they took is no longer free."""
    config = EngineConfig(
        "tests", "float32", "cuda", max_model_len=256, max_num_seqs=4, max_num_batched_tokens=64, block_size=16
    )
    free_bytes, total_bytes, graph_bytes = 40_000, 100_000, 7_000
    built: list[object] = []

    class Built:
        """A runner whose largest step and graphs take memory."""

        def __init__(self, _model: object, _variant: object, num_blocks: int, *_: object) -> None:
            built.append(num_blocks)

        def run_largest(self) -> None:
            built.append("largest")

    monkeypatch.setattr(build, "Runner", Built)
    monkeypatch.setattr(build, "rope_tables", lambda *_: (None, None))
    monkeypatch.setattr(kv_cache, "allocate", lambda _config, num_blocks, *_: num_blocks)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free_bytes, total_bytes))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: graph_bytes * ("largest" in built))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    loaded = tiny_model()
    build.build_runner(config, BASELINE, loaded.config, loaded.weights, ALONE)
    block_bytes = 16 * loaded.config.kv_bytes_per_token(4)
    assert built == [1, "largest", int((free_bytes - 0.1 * total_bytes - graph_bytes) // block_bytes)]


def test_12_chunks_before_the_last_run_no_lm_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, every chunk of a prompt runs LM head and sampler for a token that is thrown away."""
    engine = tiny_engine(max_num_batched_tokens=16, max_num_seqs=1)
    rows: list[int] = []
    head = Ops.next_token

    def counted(self: Ops, stream: Any, *args: Any) -> torch.Tensor:
        rows.append(stream.delta_TH.shape[0])
        return head(self, stream, *args)

    monkeypatch.setattr(Ops, "next_token", counted)
    serve(engine, [PROMPTS[6]], GREEDY)
    chunks = -(-len(PROMPTS[6]) // 16)
    assert engine.metrics.num_steps == chunks - 1 + GREEDY.max_tokens
    assert rows == [1] * GREEDY.max_tokens


def test_13_an_engine_says_why_it_is_slow() -> None:
    """There, nothing is counted, and 132 tokens a second stayed unexplained (#245)."""
    engine = graph_engine(num_kv_blocks=9, max_num_batched_tokens=40)
    serve(engine, PROMPTS[:6], GREEDY)
    figures = engine.snapshot()
    assert figures["preemptions"] > 0
    assert figures["peak_blocks"] == figures["blocks"] == 9
    assert figures["graph_replays"] > 0
    assert figures["no graph: prefill chunks and decodes in one step"] > 0
    assert {"prefix_hit_rate", "graph_captures", "triton_compilations", "dynamo_compilations"} <= figures.keys()


def test_the_append_test_that_five_threads_call_wrong() -> None:
    """A block is taken for the token that needs it, neither one step early nor late (#30, #91, #150, #151, #240)."""
    engine = tiny_engine(overlap=False)
    engine.add_request(prompt_of(15), replace(GREEDY, max_tokens=20))
    held = []
    for _ in itertools.repeat(None, 19):
        engine.step()
        held.append(engine.blocks.num_used)
    # Positions 0..14 in the prefill, then one a step: position 16 is the first of the second block.
    assert held == [1, 1, *[2] * 16, 3]
    run(engine)


def test_the_model_is_a_value() -> None:
    """There, a global context carries a step's tensors; here two models run in turn without knowing of each other."""
    model = tiny_engine().model
    assert isinstance(model, Model)
    with pytest.raises(AttributeError):
        model.config = None  # type: ignore[misc, assignment]
