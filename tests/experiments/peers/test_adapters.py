"""Each adapter in a worker's hands: transformers itself, and vLLM and nano-vLLM as packages with their API."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import SamplingParams
from engine.loading import load_model_yaml
from engine.loading.export import hf_config
from experiments.config import PEERS, RuntimeConfig
from experiments.memory import KEEP_THEIR_CACHE
from experiments.messages import Failed, Measure, Measured, Ready, Trace, Verified, Verify
from experiments.peer_worker import PeerWorker, import_early
from experiments.peers import nano_vllm
from experiments.peers.adapter import adapter_of
from experiments.records import Cell, CellResult, Status
from tests.engine.checkpoints import tiny_checkpoint
from tests.experiments.measuring.sessions import session_of
from tests.experiments.peers.loads import FAKES, load_peer, points

# Its head is not its embedding: a tied random model this small repeats the prompt's last token, whatever its weights.
LLAMA = "tiny-llama"
PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12]]
FAKE_MODULES = ("vllm", "nanovllm", "fake_engine")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for the module: the model is written once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def no_fakes() -> Iterator[None]:
    """What a test imports of the fake packages is forgotten, and so is where they were."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in FAKE_MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM is installed."""
    monkeypatch.syspath_prepend(str(FAKES))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A commit of nano-vLLM."""
    path = shutil.copytree(FAKES, tmp_path / "nano-vllm", ignore=shutil.ignore_patterns("vllm", "__pycache__"))
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "All of it")):
        subprocess.run(["git", *command], cwd=path, check=True)
    return path


def loaded(kind: str, **changes: Any) -> tuple[PeerWorker, Ready]:
    worker = PeerWorker()
    ready = worker.answer(load_peer(kind, **changes))
    assert isinstance(ready, Ready), ready
    return worker, ready


@pytest.fixture
def qwen3(tmp_path: Path) -> str:
    """The config.json of such a model of nano-vLLM's one architecture, drawn like those under configs/model."""
    config = replace(load_model_yaml("tiny"), tie_word_embeddings=False)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(hf_config(config, torch.float32)))
    return str(path)


def all_cells(worker: PeerWorker, model: str) -> dict[str, CellResult]:
    """Verify, and measure one cell of each kind."""
    verified = worker.answer(Verify())
    assert isinstance(verified, Verified), verified
    assert verified.verdict.ok, verified.verdict.reason
    results = {}
    for point in points(model):
        measured = worker.answer(Measure(Cell(point, "peer", 0)))
        assert isinstance(measured, Measured)
        assert measured.result.status is Status.OK, measured.result.reason
        assert measured.result.verdict == verified.verdict
        results[point.workload] = measured.result
    return results


def our_tokens(model: str, count: int) -> list[list[int]]:
    engine = session_of(model).engine(len(PROMPTS), 64, 256)
    outputs = engine.generate(PROMPTS, SamplingParams(max_tokens=count, ignore_eos=True))
    return [output.token_ids for output in outputs]


def test_transformers_runs_every_cell_and_gives_our_tokens() -> None:
    """By generate and by continuous batching, in fp32, token for token."""
    worker, ready = loaded("transformers", model=LLAMA)
    assert ready.weights == "random: tiny-llama, seed 0"
    assert ready.weights_hash == session_of(LLAMA).weights_hash
    assert ready.facts["cache"] == "dynamic, eager"
    results = all_cells(worker, LLAMA)
    assert {name: list(result.samples) for name, result in results.items()} == {
        "decode": ["step_ms"],
        "prefill": ["ttft_ms"],
        "offline": ["output_tokens_per_s"],
    }
    decode = results["decode"]
    assert decode.kernels == "peer beside twins"
    assert decode.verdict is not None
    assert decode.verdict.kl_mean is not None
    assert worker.session is not None
    peer = worker.session.peer
    assert peer.generate(PROMPTS, [12, 12]) == our_tokens(LLAMA, 12)
    assert peer.generate(PROMPTS, [12, 7]) == [our_tokens(LLAMA, 12)[0], our_tokens(LLAMA, 7)[1]]
    peer.rest()


def test_transformers_with_a_static_cache_gives_our_tokens_too() -> None:
    request = load_peer("transformers", model=LLAMA)
    static = replace(request, variant=replace(request.variant, runtime=RuntimeConfig(compile=True)))
    worker = PeerWorker()
    ready = worker.answer(static)
    assert isinstance(ready, Ready)
    assert ready.facts["cache"].startswith("static")
    assert worker.session is not None
    assert worker.session.peer.generate(PROMPTS, [12, 12]) == our_tokens(LLAMA, 12)


@pytest.mark.usefixtures("vllm")
def test_vllm_runs_every_cell_and_says_what_it_chose() -> None:
    worker, ready = loaded("vllm", model=LLAMA)
    results = all_cells(worker, LLAMA)
    assert (
        ready.facts.items()
        >= {
            "version": "0.26.0",
            "attention": "FLASH_ATTN",
            "graphs": "FULL_AND_PIECEWISE",
            "compile": "VLLM_COMPILE",
            "async_scheduling": "True",
            "max_num_batched_tokens": "16384",
        }.items()
    )
    assert "in a process of its own" in ready.facts["includes"]
    verdict = results["decode"].verdict
    assert verdict is not None
    assert (verdict.kl_mean, verdict.top1_agreement) == (None, 1.0)
    assert results["prefill"].counters == {"kv_blocks": 100.0, "block_size": 16.0, "max_num_seqs": 256.0}
    assert worker.session is not None
    assert worker.session.peer.generate(PROMPTS, [9, 9]) == our_tokens(LLAMA, 9)


@pytest.mark.usefixtures("vllm")
def test_vllm_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launching is a variant's runtime, here as everywhere; and the engine may live in the worker."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    request = load_peer("vllm")
    eager = replace(request, variant=replace(request.variant, runtime=RuntimeConfig(cuda_graphs=False)))
    ready = PeerWorker().answer(eager)
    assert isinstance(ready, Ready)
    assert (ready.facts["graphs"], ready.facts["compile"]) == ("NONE", "NONE")
    assert ready.facts["includes"].endswith("It runs in this process.")


def test_nano_vllm_runs_every_cell_from_a_checkout(checkout: Path, qwen3: str) -> None:
    """Though it refuses to be greedy, and decodes what nobody reads."""
    worker, ready = loaded("nano_vllm", model=qwen3, path=str(checkout))
    results = all_cells(worker, qwen3)
    assert re.fullmatch(r"[0-9a-f]{40}", ready.facts["version"])
    assert ready.facts["unmodified"] == "yes"
    assert str(checkout) not in " ".join(ready.facts.values())
    assert results["offline"].counters == {"kv_blocks": 40.0, "block_size": 256.0}
    assert worker.session is not None
    assert worker.session.peer.generate(PROMPTS, [9, 9]) == our_tokens(qwen3, 9)


def test_a_copy_without_a_history_says_which_commit_it_is(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    (checkout / "COMMIT").write_text("bb823b3\n")
    assert loaded("nano_vllm", path=str(checkout))[1].facts["version"] == "bb823b3"


def test_nano_vllm_opens_its_group_at_a_free_port() -> None:
    """Its own is another engine's already."""
    import torch.distributed as dist

    with socket.socket() as taken, nano_vllm._at_a_free_port():
        taken.bind(("localhost", 0))
        taken.listen()
        address = f"tcp://localhost:{taken.getsockname()[1]}"
        dist.init_process_group("gloo", address, world_size=1, rank=0)
    try:
        assert dist.get_world_size() == 1
    finally:
        dist.destroy_process_group()


def test_a_cache_too_small_for_the_largest_cell_is_an_error(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would preempt, and be timed doing so."""
    monkeypatch.setattr(nano_vllm.NanoVllm, "counters", lambda self: {"kv_blocks": 2.0})
    answer = PeerWorker().answer(load_peer("nano_vllm", path=str(checkout)))
    assert isinstance(answer, Failed)
    assert "a cache of 2 blocks, too few" in answer.reason


@pytest.mark.parametrize("kind", PEERS)
def test_blocks_are_what_the_harness_reckons_with(kind: str) -> None:
    assert adapter_of(kind).BLOCK_SIZE == KEEP_THEIR_CACHE.get(kind, adapter_of(kind).BLOCK_SIZE)


@pytest.mark.parametrize("kind", PEERS)
def test_an_engine_that_is_not_here_is_no_trouble_to_import_early(kind: str) -> None:
    """Its worker says so when it is to load it."""
    import_early(kind)


def test_a_changed_checkout_is_told(checkout: Path) -> None:
    with (checkout / "nanovllm" / "__init__.py").open("a") as module:
        module.write("\nFAST = True\n")
    assert loaded("nano_vllm", path=str(checkout))[1].facts["unmodified"] == "no"


def test_what_is_not_here_is_skipped_with_the_way_to_get_it() -> None:
    """Before any weights are drawn or written."""
    assert PeerWorker().answer(load_peer("vllm")) == Failed(
        "skipped", "vllm is not installed; for its cells: pip install 'fusebench[vllm]'"
    )
    assert PeerWorker().answer(load_peer("nano_vllm")) == Failed(
        "skipped", "name a checkout of nano-vLLM: variant.nano_vllm.path=FOLDER"
    )


def test_a_model_that_nano_vllm_does_not_have_is_skipped(checkout: Path) -> None:
    """It would load it, and compute something else."""
    answer = PeerWorker().answer(load_peer("nano_vllm", model=LLAMA, path=str(checkout)))
    assert answer == Failed("skipped", "nano-vLLM has Qwen3 with plain RoPE only, not llama with llama3")


def test_a_checkpoint_of_another_dtype_is_skipped_by_nano_vllm(checkout: Path, tmp_path: Path) -> None:
    """It takes the dtype from config.json, whatever is asked for."""
    folder = str(tiny_checkpoint(tmp_path / "single", "qwen3"))
    request = load_peer("nano_vllm", model=folder, path=str(checkout), weights="real", dtype="bfloat16")
    assert PeerWorker().answer(request) == Failed(
        "skipped", "nano-vLLM runs a checkpoint in the dtype of its config.json, float32, not in bfloat16"
    )


def test_a_package_that_dies_at_import_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Being there and broken is not being absent."""
    (tmp_path / "vllm.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = PeerWorker().answer(load_peer("vllm"))
    assert answer == Failed("error", "ImportError: libcudart.so.13: cannot open shared object file")


@pytest.mark.parametrize("kind", ["transformers", "vllm", "nano_vllm"])
@pytest.mark.usefixtures("vllm")
def test_a_runtime_that_a_peer_has_not_is_refused(kind: str, checkout: Path) -> None:
    request = load_peer(kind, path=str(checkout))
    wrong = replace(request, variant=replace(request.variant, runtime=RuntimeConfig(pdl=True)))
    answer = PeerWorker().answer(wrong)
    assert isinstance(answer, Failed)
    assert answer.kind == "user"
    assert "runtime.compile=true" in answer.reason


def test_a_peer_is_not_traced() -> None:
    worker, _ = loaded("transformers")
    answer = worker.answer(Trace(Cell(points()[0], "transformers", 0), 4))
    assert answer == Failed("skipped", "another engine is not asked to trace")


def test_whatever_came_onto_the_gpu_while_it_loaded_is_the_peer_s(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter(({1}, {1, 5, 6}))
    monkeypatch.setattr("experiments.peer_worker.gpu_processes", lambda: next(seen))
    assert loaded("transformers")[1].gpu_pids == (5, 6)
