"""Every YAML composes, overrides do what they say, and what is misspelt is named in one line."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from experiments.compose import compose, names
from experiments.config import BASELINE, RuntimeConfig
from experiments.errors import UserError
from experiments.validate_inputs import check

GROUPS = ("experiment", "model", "variant", "workload", "protocol", "cluster")


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_composes_and_is_sound(name: str) -> None:
    config = compose([f"experiment={name}"])
    assert config.name == name
    assert config.question.endswith("?")
    assert BASELINE in [variant.name for variant in config.variants]
    assert len(check(config)) == len(config.models)


PARTS = [(f"{group}s", name) for group in ("variant", "workload") for name in names(group)]


@pytest.mark.parametrize(("key", "name"), PARTS)
def test_every_variant_and_workload_composes(key: str, name: str) -> None:
    listed = f"[{BASELINE},{name}]" if name != BASELINE and key == "variants" else f"[{name}]"
    # A model with as many positions as any workload asks for.
    config = compose([f"{key}={listed}", "models=qwen3-0.6b"])
    part = getattr(config, key)[-1]
    assert part.name == name or part.rates
    check(config)


@pytest.mark.parametrize("name", names("protocol"))
def test_every_protocol_composes(name: str) -> None:
    assert compose([f"protocol={name}"]).protocol.rounds >= 1


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in names(group)])
def test_every_file_says_what_it_is_for(group: str, name: str) -> None:
    text = (Path("configs") / group / f"{name}.yaml").read_text()
    assert text.removeprefix("# @package _global_\n").startswith("# ")


@pytest.mark.parametrize("model", ["qwen3-0.6b", "qwen3-8b"])
def test_the_cells_of_the_goals_are_in_headline(model: str) -> None:
    assert cells("headline", model) >= {
        *(("decode", batch, length) for batch, length in ((1, 128), (8, 1024), (64, 1024), (256, 1024))),
        *(("prefill", 1, length) for length in (512, 2048, 8192)),
    }


def test_the_throughput_goal_is_in_offline() -> None:
    assert cells("offline", "qwen3-0.6b") == {("offline", 256, 0)}


def cells(experiment: str, model: str) -> set[tuple[str, int, int]]:
    """(kind, batch, length) of every point that an experiment has of a model."""
    config = compose([f"experiment={experiment}"])
    assert model in config.models
    return {(w.kind, *pair) for w in config.workloads if w.is_for(model) for pair in w.pairs()}


def test_a_lone_name_is_a_list_of_one() -> None:
    assert compose(["models=tiny"]).models == compose(["models=[tiny]"]).models == ["tiny"]
    assert compose(["models=tiny,./some/folder"]).models == ["tiny", "./some/folder"]


def test_batches_and_lengths_replace_points() -> None:
    base = ["experiment=headline", "workloads=[decode,offline]"]
    decode, offline = compose([*base, "batches=[2,4]"]).workloads
    assert decode.pairs() == [(2, 128), (2, 1024), (4, 128), (4, 1024)]
    assert offline.pairs() == [(256, 0)]
    assert compose([*base, "lengths=64"]).workloads[0].pairs() == [(1, 64), (8, 64), (64, 64), (256, 64)]


def test_each_rate_is_a_workload_of_its_own() -> None:
    """Tables, comparisons and resumed runs tell them apart by name; everything else is the same."""
    asked = ["workloads=[serving,decode]", "workload.serving.rates=[2,0.5]", "batches=[3]"]
    two, half, decode = compose(asked).workloads
    assert [(w.name, w.rates) for w in (two, half)] == [("serving-2rps", [2.0]), ("serving-0_5rps", [0.5])]
    assert replace(two, name="", rates=[]) == replace(half, name="", rates=[])
    assert two.pairs() == [(100, 0)], "a number of requests is no batch size"
    assert decode.pairs()[0][0] == 3


def test_explicit_points_win_over_the_product() -> None:
    workload = compose(["workload.decode.points=[[3,5],[7,11]]"]).workloads[1]
    assert workload.pairs() == [(3, 5), (7, 11)]


def test_a_switch_and_a_runtime_flag_can_be_changed_in_place() -> None:
    asked = ["variants=[baseline,fused]", "variant.fused.switches.norm_linear=false", "variant.fused.runtime.pdl=true"]
    _, fused = compose(asked).variants
    assert fused.switches["norm_linear"] is False
    assert all(on for name, on in fused.switches.items() if name != "norm_linear")
    assert fused.runtime == RuntimeConfig(cuda_graphs=True, compile=False, pdl=True)


def test_a_new_variant_may_extend_a_file() -> None:
    asked = ["variants=[baseline,fused,ablated]", "variant.ablated={extends:fused,switches:{norm_linear:false}}"]
    _, fused, ablated = compose(asked).variants
    assert (ablated.name, ablated.kind) == ("ablated", "fused")
    assert ablated.switches == fused.switches | {"norm_linear": False}


def test_composing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose(["experiment=demo"])
    assert not list(tmp_path.iterdir())
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("bathces=1", r"bathces is not a key of an experiment; did you mean 'batches'\?"),
        ("protocol.round=3", r"did you mean 'protocol.rounds'\?"),
        ("hydra.run.dir=x", "hydra.run.dir is not a key"),
        ("variant=fused", r"did you mean 'variants'\?"),
        ("variants=[baseline,fusd]", r"variant 'fusd' is not known; did you mean 'fused'\? \(there are baseline"),
        ("workloads=[decod]", r"did you mean 'decode'\?"),
        ("protocol=quik", r"protocol 'quik' is not known; did you mean 'quick'\?"),
        ("experiment=dem", r"did you mean 'demo'\?"),
        ("variant.fused.switches.norm_liner=false", r"no switch 'norm_liner'; did you mean 'norm_linear'\?"),
        ("variant.fused.switches.a=false", r"no switch 'a' \(configs/variant/fused.yaml names norm_linear, "),
        ("variant.fused.swiches.a=false", r"variant.fused.swiches is not a key; did you mean 'switches'\?"),
        ("variant.fused.runtime.grafs=false", "variant.fused.runtime.grafs is not a key"),
        ("variant.fusde.runtime.pdl=true", r"fusde is not among variants=\[baseline, fused\]; did you mean 'fused'\?"),
        ("variant.folded.runtime.pdl=true", r"folded is not among variants=\[baseline, fused\]; add it$"),
        ("workload.decoed.sigma=1", r"sigma: decoed is not among workloads=.*; did you mean 'decode'\?"),
        ("workload.decode.skip.fusd=slow", r"workload.decode.skip: there is no variant 'fusd'; did you mean 'fused'\?"),
        ("variant.fused.switches=[1]", r"variant.fused.switches must be a mapping of switches .*, not \[1\]"),
        ("protocol=null", "protocol=null must be one of full, quick, smoke"),
        ("protocol=[1]", r"protocol=\[1\] must be one of full, quick, smoke"),
        ("protocol={}", "protocol={} must be one of full, quick, smoke"),
        ("cluster=", "cluster= must be one of local, none, slurm"),
        ("variant.fused=3", "variant.fused must be a mapping"),
        ("variant.fused.extends=nothing", "variant 'nothing' is not known"),
        ("variants=[{a:1}]", "variants must be a list of names"),
        ("protocol.rounds=many", "protocol.rounds: Value 'many'"),
        ("seed=1.5", "seed: Value '1.5'"),
        ("dry_run=maybe", "dry_run: Value 'maybe'"),
        ("batches=[x]", r"batches\[0\]: Value 'x'"),
        ("batches=[1,", "cannot be read"),
        ("batches", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("+x=3", "not of the form key=value"),
        ("~models", "not of the form key=value"),
        ("results_dir=${nowhere}", "nowhere"),
    ],
)
def test_what_is_misspelt_is_named(override: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as raised:
        compose(["experiment=quick", "variants=[baseline,fused]", override])
    assert "\n" not in str(raised.value)


def test_an_experiment_s_file_may_say_how_parts_would_run_that_are_not_asked_for() -> None:
    assert [variant.name for variant in compose(["experiment=ablation", "variants=[baseline]"]).variants] == [BASELINE]


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of configs/ to break."""
    root = tmp_path / "root"
    shutil.copytree("configs", root / "configs")
    monkeypatch.setattr("experiments.compose.files", lambda _: root / "configs")
    return root / "configs"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"kind: [baseline", r"configs/variant/broken.yaml, line 1, is no YAML: expected ',' or '\]'"),
        (b"kind: baseline\nkind: fused\n", r"broken.yaml, line 2, is no YAML: found duplicate key kind"),
        (b"kind: \xff", "configs/variant/broken.yaml cannot be read: 'utf-8' codec"),
    ],
)
def test_a_file_that_is_no_yaml_is_named(configs: Path, text: bytes, complaint: str) -> None:
    (configs / "variant" / "broken.yaml").write_bytes(text)
    with pytest.raises(UserError, match=complaint) as raised:
        compose(["variants=[baseline,broken]"])
    assert "\n" not in str(raised.value)


def test_an_experiment_that_is_no_yaml_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "quick.yaml"
    broken.write_text("name: quick\nmodels: [tiny")

    def load(*_: object, **__: object) -> None:
        with broken.open() as file:
            OmegaConf.load(file)

    monkeypatch.setattr("hydra.compose", load)
    with pytest.raises(UserError, match=rf"{broken}, line 2, is no YAML: expected ',' or ']'"):
        compose(["experiment=quick"])


def test_a_yaml_with_a_wrong_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.compose.load_yaml", lambda *_: OmegaConf.create({"kinds": "baseline"}))
    with pytest.raises(UserError, match=r"kinds is not a key; did you mean 'kind'\?"):
        compose([])
