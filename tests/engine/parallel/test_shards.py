"""What each rank holds: together the whole model, nothing twice but what is everyone's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import Engine, EngineConfig, ModelError, UserError
from engine.loading import LoadedModel, load_model, load_model_yaml
from engine.loading.names import slots_of
from engine.parallel.device import rank_device
from engine.parallel.ranks import Ranks
from engine.parallel.shards import shard_config
from engine.parallel.sharing import share_weights
from engine.weights import ModelWeights
from tests.engine.checkpoints import ARCHITECTURES, tiny_checkpoint
from tests.engine.loading.gguf_files import write_gguf
from tests.engine.parallel.threads import on_ranks

DIMENSION = {"o_proj": 1, "down_proj": 1}
EVERYONES = ("norm.weight", "layernorm.weight", "embed_tokens.weight")


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The whole tensors, from those of each rank by name."""
    wholes = {}
    for name in parts[0]:
        held = [slots[name] for slots in parts if name in slots]
        module = name.split(".")[-2]
        if name.endswith(EVERYONES):
            assert all(torch.equal(x, held[0]) for x in held)
            wholes[name] = held[0]
        elif module in DIMENSION and name.endswith("bias"):
            (wholes[name],) = held
        else:
            wholes[name] = torch.cat(held, DIMENSION.get(module, 0))
    return wholes


def check(load: Callable[[Ranks], LoadedModel]) -> None:
    """Two ranks' weights put together are those of one."""
    whole = load(Ranks())
    ranks = [load(Ranks(rank, 2)) for rank in range(2)]
    mine = shard_config(whole.config, 2)
    assert all(loaded.config == whole.config for loaded in ranks)
    expected = slots_of(whole.weights, whole.config)
    found = joined([slots_of(loaded.weights, mine) for loaded in ranks])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    heads = torch.cat([loaded.weights.lm_head.weight_NK for loaded in ranks])
    assert torch.equal(heads, whole.weights.lm_head.weight_NK)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_safetensors_are_cut_as_they_are_read(tmp_path: Path, architecture: str) -> None:
    """Biases, an odd vocabulary, tied heads, several files."""
    folder = tiny_checkpoint(tmp_path, architecture, max_shard_size="40KB")
    check(lambda ranks: load_model(folder, torch.float32, "cpu", 0, ranks))


def test_gguf_is_cut_after_its_heads_are_put_in_order(tmp_path: Path) -> None:
    """llama.cpp interleaves the halves of a head."""
    path = write_gguf(tmp_path / "model.gguf", "llama")
    check(lambda ranks: load_model(path, torch.float32, "cpu", 0, ranks))


def test_random_weights_do_not_depend_on_the_number_of_ranks() -> None:
    """So that one GPU and two answer alike."""
    check(lambda ranks: load_model("tiny", torch.float32, "cpu", 3, ranks))


def test_weights_in_memory_are_handed_round(tmp_path: Path) -> None:
    """Rank 0's, to a rank that has none."""
    whole = load_model(tiny_checkpoint(tmp_path, "llama"), torch.float32, "cpu", 0)

    def task(ranks: Ranks) -> dict[str, Tensor]:
        held = whole.weights if ranks.rank == 0 else None
        weights = share_weights(whole.config, held, torch.float32, ranks)
        return slots_of(weights, shard_config(whole.config, ranks.size))

    found, expected = joined(on_ranks(2, task)), slots_of(whole.weights, whole.config)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_prepared_weights_cannot_be_handed_round() -> None:
    """A variant's `prepare` may have made anything of them."""
    whole = load_model("tiny", torch.float32, "cpu", 0)
    weights: ModelWeights = replace(whole.weights, final_norm_H=None)
    with pytest.raises(ModelError, match=r"given to the engine.*missing model\.norm\.weight"):
        share_weights(whole.config, weights, torch.float32, Ranks())


def test_a_missing_tensor_is_missed_by_every_rank(tmp_path: Path) -> None:
    """Strict both ways, whatever part a rank wants."""
    folder = tiny_checkpoint(tmp_path, "llama")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    for rank in range(2):
        with pytest.raises(ModelError, match=r"missing model\.layers\.3"):
            load_model(folder, torch.float32, "cpu", 0, Ranks(rank, 2))


@pytest.mark.parametrize(
    ("changes", "size", "key"),
    [({}, 3, "num_kv_heads=2"), ({"num_kv_heads": 4}, 8, "num_kv_heads=4"), ({"intermediate_size": 161}, 2, "161")],
)
def test_what_cannot_be_dealt_out_is_refused(changes: dict[str, Any], size: int, key: str) -> None:
    """Key and value heads are not replicated."""
    with pytest.raises(UserError, match=f"tensor_parallel_size={size} does not divide.*{key}"):
        shard_config(replace(load_model_yaml("tiny"), **changes), size)


def test_a_config_asks_for_at_least_one_rank() -> None:
    """None is no number of GPUs."""
    with pytest.raises(UserError, match="tensor_parallel_size=0 must be a whole number of at least 1"):
        EngineConfig("tiny", tensor_parallel_size=0)


def test_more_ranks_than_gpus_are_refused_before_a_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the number of those that torch sees."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [rank_device("cuda:1", rank, 2) for rank in range(2)] == [torch.device("cuda:1"), torch.device("cuda:2")]
    with pytest.raises(UserError, match="tensor_parallel_size=4 needs 4 GPUs from cuda on, and torch sees 3"):
        Engine(EngineConfig("tiny", device="cuda", tensor_parallel_size=4))
