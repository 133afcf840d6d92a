"""Everything wrong that can be known before a worker starts is one line that names the key."""

import json
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from engine.config import ModelConfig
from experiments.compose import compose, load_yaml
from experiments.errors import UserError
from experiments.models import OPTIONAL, REQUIRED, find_model
from experiments.validate_inputs import check

SERVING = ["workloads=serving"]
BAD = [
    (["models=[]"], "models is empty"),
    (["variants=[]"], "variants is empty"),
    (["workloads=[]"], "workloads is empty"),
    (["variants=[fused]"], "lacks 'baseline'"),
    (["variants=[baseline,fused,fused]"], "variants has fused twice"),
    (["workloads=[decode,decode]"], "workloads has decode twice"),
    (["models=[tiny,tiny]"], "models has tiny twice"),
    (["batches=[0]"], "batch=0 must be positive"),
    (["batches=[-1]"], "batch=-1 must be positive"),
    (["batches=[]"], r"batches=\[\] is empty: name at least one, or batches=null"),
    (["batches=[99999999999999999999999]"], "batch=9{23} must be 1000000 or less"),
    (["seed=9223372036854775808"], "seed=9223372036854775808 must fit 64 bits"),
    (["variant.fused.runtime.tensor_parallel_size=0"], "fused.runtime.tensor_parallel_size=0 must be positive"),
    (["variant.fused.kind=nosuch"], r"variant.fused.kind=nosuch: there is no variants/nosuch.py$"),
    (["variant.fused.kind=fusde"], r"there is no variants/fusde.py; did you mean 'fused'\?"),
    (["lengths=[0]"], "length=0 must be positive"),
    (["batches=[1,1]"], r"has \[1, 64\] twice"),
    (["lengths=[4097]"], "length 4097 is longer than the 4096 positions of tiny"),
    (["workloads=offline", "models=llama-3.2-1b", "workload.offline.input_tokens=[9,2]"], r"input_tokens=\[9, 2\]"),
    (["workloads=offline", "workload.offline.output_tokens=[100,4000]"], "length 5024 is longer"),
    (["workload.decode.points=[[1]]"], "must be a pair"),
    (["workload.decode.kind=decoding"], "decoding is not one of prefill, shared_prefix, decode, offline, serving"),
    (["workload.decode.rates=[1]"], "rates has no meaning for kind=decode"),
    (["workload.prefill.sigma=0.5"], "sigma has no meaning for kind=prefill"),
    (["workload.decode.sigma=-1"], "sigma=-1.0 must be 0 or more"),
    (["workload.decode.sigma=inf"], "sigma=inf must be finite"),
    (["workloads=ragged", "lengths=[4000]"], r"ragged: length \d+ is longer than the 4096 positions"),
    (["workloads=shared_prefix", "lengths=[64]"], "prefix_tokens=192 must be below the shortest length, 64"),
    (["workloads=shared_prefix", "workload.shared_prefix.prefix_tokens=0"], "prefix_tokens=0 must be positive"),
    ([*SERVING, "workload.serving.rates=[]"], r"serving.rates=\[\] must be a list of positive requests per second"),
    ([*SERVING, "workload.serving.rates=[2,0]"], r"serving-0rps.rates=\[0.0\] must be"),
    ([*SERVING, "workload.serving.rates=[2,inf]"], r"must be a list of positive"),
    ([*SERVING, "workload.serving.rates=[2,2]"], "workloads has serving-2rps twice"),
    ([*SERVING, "workload.serving.output_tokens=[1,8]"], "must be 2 or more"),
    ([*SERVING, "workload.serving.arrival_cv=-1"], "arrival_cv=-1.0 must be 0 or more"),
    ([*SERVING, "workload.serving.arrival_cv=inf"], "arrival_cv=inf must be finite"),
    ([*SERVING, "workload.serving.arrival_cv=1e200"], r"arrival_cv=1e\+200 must be 0, or from 0.001 to 1000"),
    ([*SERVING, "workload.serving.itl_slo_ms=0"], "itl_slo_ms=0.0 must be positive"),
    ([*SERVING, "workload.serving.max_num_seqs=0"], "max_num_seqs=0 must be positive"),
    ([*SERVING, "workload.serving.output_tokens=[16,4096]"], "length 4352 is longer"),
    ([*SERVING, "workload.serving.rates=[0.5]"], "100 requests at 0.5 per second, 2 windows and a warm-up, take 600 s"),
    (["protocol.rounds=-1"], "protocol.rounds=-1 must be positive"),
    (["protocol.rounds=100000000"], "protocol.rounds=100000000 must be 10000 or less"),
    (["protocol.verdict_tokens=0"], "protocol.verdict_tokens=0 must be positive"),
    (["protocol.window_ms=inf"], "protocol.window_ms=inf must be finite"),
    (["protocol.windows=0"], "protocol.windows=0 must be positive"),
    (["protocol.warmup_min_steps=-1"], "must be 0 or more"),
    (["protocol.warmup_min_steps=9", "protocol.warmup_max_steps=8"], "must not be below"),
    (["protocol.min_rounds=2"], "protocol.min_rounds=2 must be 3 or more for an interval"),
    (["protocol.target_ci=0"], "protocol.target_ci=0.0 must be positive"),
    (["protocol.flagged_repeats=-1"], "protocol.flagged_repeats=-1 must be 0 or more"),
    (["protocol.cell_timeout_s=0"], "protocol.cell_timeout_s=0.0 must be positive"),
    (["protocol.time_budget_s=0"], "protocol.time_budget_s=0.0 must be positive"),
    (["device=gpu"], "device=gpu is not one of auto, cpu, cuda"),
    (["dtype=fp8"], "dtype=fp8 is not one of"),
    (["weights=none"], "weights=none is not one of"),
    (["name=../../elsewhere"], "may have letters"),
    (["variants=[baseline,a/b]", "variant={}"], "variant"),
    (["workload.decode.models=[qwen]"], "model 'qwen' is not known"),
    (["workloads=[decode]", "workload.decode.models=[qwen3-8b]"], "models: tiny has nothing to run"),
    (["models=[no-such-model]"], "model 'no-such-model' is not known"),
    (["models=[./no/folder]"], "there is no such folder"),
    (["variants=[baseline,vllm]", "variant.vllm.path=."], "vllm.path: only nano_vllm is run from a checkout"),
    (["variants=[baseline,nano_vllm]", "variant.nano_vllm.path=./docs"], "path=./docs holds no folder nanovllm"),
    (["variants=[baseline,mine]", "variant.mine={extends:fused,kind:vllm}"], "mine.switches: vllm is another engine"),
    (["models=[missing.gguf]"], "there is no such file"),
]


@pytest.mark.parametrize(("overrides", "complaint"), BAD, ids=["+".join(overrides) for overrides, _ in BAD])
def test_bad_input_is_named(overrides: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as raised:
        check(compose(["experiment=quick", *overrides]))
    assert "\n" not in str(raised.value)


def folder(path: Path, **config: object) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        check(compose([f"models=[{tmp_path}]"]))


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_broken_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        check(compose([f"models=[{tmp_path}]"]))


def test_positions_of_a_folder_count(tmp_path: Path) -> None:
    path = folder(tmp_path / "My.Model", max_position_embeddings=63)
    with pytest.raises(UserError, match="length 64 is longer than the 63 positions of my-model"):
        check(compose(["experiment=quick", f"models=[{path}]"]))
    assert check(compose(["experiment=quick", f"models=[{path}]", "lengths=63"]))[0].name == "my-model"


def test_sizes_of_a_folder_are_read(tmp_path: Path) -> None:
    sizes = {"hidden_size": 72, "intermediate_size": 100, "num_hidden_layers": 3, "vocab_size": 131}
    model = find_model(str(folder(tmp_path / "m", num_attention_heads=6, **sizes)))
    assert model.sizes["head_dim"] == 12
    assert model.sizes["num_kv_heads"] == 6
    assert find_model(str(folder(tmp_path / "n", **sizes))).sizes == {}


def test_the_keys_of_configs_model_are_the_engine_s() -> None:
    engine_s = fields(ModelConfig)
    needed = {field.name for field in engine_s if field.default is MISSING}
    assert set(REQUIRED) == {"name", *needed}
    assert set(OPTIONAL) == {field.name for field in engine_s} - needed


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hiden_size": 64}, "hiden_size is not a key; did you mean 'hidden_size'"),
        ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
        ({"architecture": None}, "architecture is missing"),
        ({"num_heads": "four"}, "num_heads=four must be a positive whole number"),
        ({"head_dim": 0}, "head_dim=0 must be a positive whole number"),
    ],
)
def test_a_broken_model_file_is_no_plan(
    changes: dict[str, object], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run starts no worker that would say so. None takes the key out."""
    mended = {key: value for key, value in {**load_yaml("model", "tiny"), **changes}.items() if value is not None}
    monkeypatch.setattr("experiments.models.load_yaml", lambda *_: OmegaConf.create(mended))
    with pytest.raises(UserError, match=f"configs/model/tiny.yaml: {complaint}"):
        check(compose(["experiment=quick", "models=tiny", "dry_run=true"]))


def test_models_of_one_short_name_are_refused(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "m"), folder(tmp_path / "M")
    with pytest.raises(UserError, match="models has m twice"):
        check(compose([f"models=[{one},{two}]"]))


@pytest.mark.parametrize(("source", "name"), [("Qwen/Qwen3-0.6B", "qwen3-0-6b"), ("tiny", "tiny"), ("a_b/C.d", "c-d")])
def test_a_model_has_a_short_safe_name(source: str, name: str) -> None:
    assert find_model(source).name == name


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "Smol.Q4_1.gguf"
    file.touch()
    assert find_model(str(file)).name == "smol-q4_1"
