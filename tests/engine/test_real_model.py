"""Greedy tokens of real SmolLM2-135M in fp32 equal transformers' token for token, alone and in one batch.

A few short answers by default; `--full-parity` asks for 20 prompts of 64 tokens each, some minutes of work.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine import Engine, EngineConfig, SamplingParams, Variant
from engine.loading import LoadedModel, load_model
from experiments.fetch import cached_model
from tests.shipped import VARIANTS

MODEL = "smollm2-135m"
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea, there lived",
    "Water boils at 100 degrees Celsius because",
    "List three colours of the rainbow:",
    "The quick brown fox",
    "In 1969, the first humans",
    "SELECT name, age FROM users WHERE",
    "To make a cup of tea, first",
    "E = mc^2 means that",
    "Dear Sir or Madam,",
    "1, 1, 2, 3, 5, 8,",
    "La capitale de l'Italie est",
    "The opposite of hot is",
    "# A shopping list\n\n- milk\n- eggs\n-",
    "Photosynthesis is the process by which",
    "A",
    "import numpy as np\n\nx = np.",
    "The largest planet in our solar system is Jupiter. It has",
    "To be, or not to be, that is the question: " * 6,
)
Answers = tuple[tuple[int, ...], ...]


@pytest.fixture(scope="module")
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """(prompts, tokens each)."""
    return (len(PROMPTS), 64) if request.config.getoption("--full-parity") else (3, 12)


@pytest.fixture(scope="module")
def path() -> Path:
    """The checkpoint's file."""
    found = cached_model(MODEL)
    if found is None:
        pytest.skip(f"{MODEL} is not in the cache; run: fusebench fetch {MODEL}")
    return found


@pytest.fixture(scope="module")
def loaded(path: Path) -> LoadedModel:
    """The checkpoint as the engine loads it."""
    return load_model(path, torch.float32, "cpu", seed=0)


@pytest.fixture(scope="module")
def expected(path: Path, loaded: LoadedModel) -> Callable[[int, int], Answers]:
    """transformers' greedy answers to the first prompts, one prompt at a time."""
    from transformers import AutoModelForCausalLM

    assert loaded.tokenizer is not None
    encode = loaded.tokenizer.encode

    @functools.cache
    def answers(num_prompts: int, num_tokens: int) -> Answers:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        found = []
        for text in PROMPTS[:num_prompts]:
            ids = torch.tensor([encode(text)])
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens,
                min_new_tokens=num_tokens, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
            found.append(tuple(out[0, ids.shape[1] :].tolist()))
        return tuple(found)

    return answers


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda variant: variant.name)
def test_tokens_equal_those_of_transformers(
    loaded: LoadedModel, expected: Callable[[int, int], Answers], size: tuple[int, int], variant: Variant
) -> None:
    """Every prompt in one batch, then every prompt alone."""
    num_prompts, num_tokens = size
    config = EngineConfig(
        MODEL, "float32", max_model_len=512, max_num_seqs=num_prompts, max_num_batched_tokens=512, num_kv_blocks=64
    )
    engine = Engine(config, variant, loaded)
    sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    together = engine.generate(PROMPTS[:num_prompts], sampling)
    assert tuple(tuple(output.token_ids) for output in together) == expected(num_prompts, num_tokens)
    one_by_one = [engine.generate([text], sampling)[0] for text in PROMPTS[:num_prompts]]
    assert [output.token_ids for output in one_by_one] == [output.token_ids for output in together]
    assert [output.text for output in one_by_one] == [output.text for output in together]
