"""Variants by name: what they replace, what their switches do, and that a trace sees all of their work."""

import fnmatch
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import variants
from engine import BASELINE, Runtime, UserError, ranges
from engine.ops import Ops
from engine.weights import Linear
from tests.engine.tiny import GREEDY, PROMPTS, expected, serve, tiny_engine
from tests.shipped import VARIANT_NAMES, VARIANTS
from variants import build_variant, load_variant
from variants.fused import FusedOps
from variants.kernels.norm_linear import norm_linear_reference
from variants.kernels.qkv_post import qk_norm_rope_store_reference
from variants.kernels.tile_table import Trial, trying


@pytest.mark.parametrize("name", VARIANT_NAMES)
def test_a_variant_is_called_as_its_file(name: str) -> None:
    """And its switches are all set, to true or false."""
    variant = load_variant(name)
    assert variant.name == name
    assert all(type(value) is bool for value in variant.switches.values())


def test_what_a_variant_replaces_is_known_by_name() -> None:
    """The baseline nothing; the others what they override, methods of `Ops` only."""
    assert BASELINE.replaced == VARIANTS["baseline"].replaced == ()
    assert VARIANTS["folded"].replaced == VARIANTS["norm_linear"].replaced == ("norm_linear",)
    assert VARIANTS["compiled"].replaced == ("layer",)
    assert {"norm_linear", "qkv_post", "layer", "next_token"} <= set(VARIANTS["fused"].replaced)
    assert "linear_add" not in VARIANTS["fused"].replaced


@pytest.mark.parametrize("name", VARIANT_NAMES)
def test_loading_twice_gives_equals_that_share_nothing_changed(name: str) -> None:
    """A variant is a value: building one leaves the baseline's ops as they were."""
    before = dict(vars(Ops))
    load_variant(name)
    assert dict(vars(Ops)) == before


@pytest.mark.parametrize("overridden", [True, False])
def test_every_rung_alone_and_every_rung_left_out_gives_the_same_tokens(overridden: bool) -> None:
    """Ablations are right too: each switch on its own, and each one off."""
    from variants.fused import SWITCHES

    for rung in SWITCHES:
        switches = {name: (name == rung) == overridden for name in SWITCHES}
        variant = build_variant("ablation", "fused", switches, Runtime())
        assert serve(tiny_engine(variant), PROMPTS[:5], GREEDY) == expected(PROMPTS[:5]), switches


def test_many_rows_get_their_residual_from_the_product_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, with and without the other rungs; a product with a bias of its own keeps the other way."""
    from variants import dispatch
    from variants.fused import SWITCHES

    monkeypatch.setattr(dispatch, "MIN_ADDED_ROWS", 1)
    added = []
    addmm = Tensor.addmm_
    monkeypatch.setattr(Tensor, "addmm_", lambda self, x, w: added.append(x) or addmm(self, x, w))
    for switches in (SWITCHES, {name: name == "residual_epilogue" for name in SWITCHES}):
        variant = build_variant("added", "fused", switches, Runtime())
        assert serve(tiny_engine(variant), PROMPTS[:5], GREEDY) == expected(PROMPTS[:5])
        assert added
        added.clear()
    linear = Linear(torch.randn(6, 4), torch.randn(6))
    x, residual = torch.randn(3, 4), torch.randn(3, 6)
    stream = VARIANTS["fused"].ops.linear_add(x, linear, residual)
    assert not added
    torch.testing.assert_close(stream.delta_TH, residual + F.linear(x, linear.weight_NK, linear.bias_N))


def test_whole_heads_of_the_projection_reach_attention_and_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps with prompts only, and only where it is asked for; the kernel's twins in its place."""
    rows = []

    def twins(x: Tensor, residual: Any, weight: Tensor, bias: Any, partials: Any, *rest: Any) -> tuple[Tensor, Tensor]:
        *others, k_cache, v_cache, num_heads, eps, pdl = rest
        rows.append(x.shape[0])
        qkv, s = norm_linear_reference(x, residual, weight, bias, eps)
        sizes = (num_heads, *k_cache.shape[2:])
        return qk_norm_rope_store_reference(qkv, *others, k_cache, v_cache, *sizes, eps, pdl), s

    monkeypatch.setattr("variants.fused.normed_qkv_sm90", twins)
    monkeypatch.setattr("variants.fused.hopper_takes_whole_heads", lambda *tensors: True)
    engine = tiny_engine(variant=VARIANTS["fused"], max_num_batched_tokens=40)
    assert serve(engine, PROMPTS, GREEDY) == expected(PROMPTS)
    assert not rows
    engine = tiny_engine(variant=VARIANTS["fused"], max_num_batched_tokens=40)
    with trying(Trial(fused={"whole_heads": True})):
        assert serve(engine, PROMPTS, GREEDY) == expected(PROMPTS)
    assert max(rows) > 8


@pytest.mark.parametrize("cuda", [True, False])
def test_kernels_are_launched_early_in_decode_steps_alone(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt's grids have several waves; and a CPU launches nothing."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    for asked in (True, False):
        variant = build_variant("early", "fused", {}, Runtime(pdl=asked))
        assert variant.ops.pdl == (asked and cuda)
        assert variant.prompt_ops == replace(cast(FusedOps, variant.ops), pdl=False)


def test_switches_default_to_the_kind_s_own() -> None:
    """A YAML names the ones it changes."""
    from variants.fused import SWITCHES

    first = next(iter(SWITCHES))
    variant = build_variant("some", "fused", {first: not SWITCHES[first]}, Runtime())
    assert variant.switches == {**SWITCHES, first: not SWITCHES[first]}


@pytest.mark.parametrize(
    ("kind", "switches", "message"),
    [
        ("fuzed", {}, "kind=fuzed is not one of baseline, compiled, folded, fused, norm_linear"),
        ("folding", {}, "variants/folding.py has no build; kinds are baseline, compiled"),
        ("kernels", {}, "kind=kernels is not one of"),
        ("../engine", {}, "is not one of"),
        ("baseline", {"pdl": True}, "unknown switch pdl; baseline has none"),
        ("fused", {"norm_liner": True}, "unknown switch norm_liner; fused has norm_linear, "),
        ("fused", {"norm_linear": "yes"}, "norm_linear='yes' must be true or false"),
    ],
)
def test_a_variant_that_cannot_be_built_says_why(kind: str, switches: Any, message: str) -> None:
    """One line, naming the variant and the mend."""
    with pytest.raises(UserError, match=r"^variant mine: ") as caught:
        build_variant("mine", kind, switches, Runtime())
    assert message in str(caught.value)


def test_a_name_without_a_file_lists_those_with_one() -> None:
    """Whatever was meant is among them."""
    with pytest.raises(UserError, match=r"no variant named 'fast'; there are baseline, .*folded"):
        load_variant("fast")


def test_a_file_that_is_broken_is_named_and_breaks_no_other_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n\n\ndef build(): ...\n")
    monkeypatch.setattr(variants, "__path__", [*variants.__path__, str(tmp_path)])
    message = "^variant mine: variants/broken.py cannot be imported: ModuleNotFoundError: .*nothing_of_this_name"
    with pytest.raises(UserError, match=message):
        build_variant("mine", "broken", {}, Runtime())
    assert load_variant("folded").name == "folded"
    with pytest.raises(UserError, match="kind=fuzed is not one of baseline, broken, compiled"):
        build_variant("mine", "fuzed", {}, Runtime())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "kind"),
        ("- baseline", "kind"),
        ("kind: baseline\nswitch: {}", "switch"),
        ("kind: baseline\nruntime: {graphs: true}", "graphs"),
    ],
)
def test_a_file_that_is_no_variant_is_named(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing kind and unknown keys, at either level."""
    (tmp_path / "variant").mkdir()
    (tmp_path / "variant" / "mine.yaml").write_text(text)
    monkeypatch.setattr(variants.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match=rf"configs/variant/mine\.yaml: .*{message}"):
        load_variant("mine")


class Unseen(TorchDispatchMode):
    """Collects tensor operations that run inside a layer, but in no op's range."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: set[str] = set()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Stands in for the NVTX range."""
        self.open.append(name)
        yield
        self.open.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Views move no data."""
        in_layer = any(name.startswith("layer/") for name in self.open)
        in_op = any(name.startswith("op/") for name in self.open)
        if in_layer and not in_op and not func.is_view:
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", VARIANT_NAMES)
def test_all_work_of_a_layer_is_in_some_op_s_range(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An override that loses its `@op` would run unseen. Joining decodes and chunks of a mixed step is nobody's op."""
    unseen = Unseen()
    monkeypatch.setattr(ranges, "span", unseen.span)
    engine = tiny_engine(VARIANTS[name], max_num_batched_tokens=40)
    with ranges.detail(), unseen:
        for prompt in PROMPTS:
            engine.add_request(prompt, GREEDY)
        for _ in range(20):
            engine.step()
    assert unseen.found <= {"aten.cat.default"}


def marks(name: str, monkeypatch: pytest.MonkeyPatch, **switches: bool) -> set[str]:
    """The rungs that took work, in prompts of several lengths and their decodes."""
    left: set[str] = set()

    @contextmanager
    def span(text: str) -> Iterator[None]:
        left.add(text)
        yield

    monkeypatch.setattr(ranges, "span", span)
    variant = build_variant(name, name, switches, Runtime())
    with ranges.detail():
        serve(tiny_engine(variant), PROMPTS[:4], GREEDY)
    return {text.removeprefix("rung/") for text in left if text.startswith("rung/")}


def test_every_rung_says_where_it_takes_work_and_none_that_is_off_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from variants.fused import KERNELS, SWITCHES

    assert KERNELS.keys() == SWITCHES.keys()
    assert marks("fused", monkeypatch) == SWITCHES.keys()
    assert marks("norm_linear", monkeypatch) == {"norm_linear"}
    assert marks("baseline", monkeypatch) == set()
    for rung in SWITCHES:
        # Without qkv_post there is no attention at once either.
        gone = {rung, "attention"} if rung == "qkv_post" else {rung}
        assert marks("fused", monkeypatch, **{rung: False}) == SWITCHES.keys() - gone


@pytest.mark.parametrize("name", VARIANT_NAMES)
def test_the_kernel_that_proves_a_rung_exists(name: str) -> None:
    """Under the name that a profiler shows; torch.compile's kernels have theirs from the compiler."""
    folder = Path(variants.__file__).parent / "kernels"
    source = "".join(file.read_text() for file in sorted(folder.glob("*.py")))
    there = re.findall(r"^def (\w+)\(", source, re.MULTILINE)
    kernels = {kernel for kernel in VARIANTS[name].kernels.values() if kernel != "triton_*"}
    assert {kernel for kernel in kernels if not fnmatch.filter(there, kernel)} == set()


def test_compiled_layers_equal_plain_ones_without_a_graph_break() -> None:
    """Dynamo takes both halves of a layer whole, for any number of tokens; no code is generated here."""
    from torch._dynamo.testing import CompileCounter

    from variants import compiled

    counter = CompileCounter()
    parts = [
        torch.compile(part, backend=counter, dynamic=True, fullgraph=True)
        for part in (compiled.before_attention, compiled.after_attention)
    ]
    model = tiny_engine().model
    layer = model.weights.layers[0]
    for num_tokens in (3, 17, 64):
        x, residual = torch.randn(2, num_tokens, 24, generator=torch.Generator().manual_seed(0))
        positions = torch.arange(num_tokens, dtype=torch.int32)
        args = (x, residual, layer, positions, model.cos_PD2, model.sin_PD2, model.config)
        for plain, fast in zip(compiled.before_attention(*args), parts[0](*args), strict=True):
            torch.testing.assert_close(fast, plain)
    assert counter.frame_count <= 2
