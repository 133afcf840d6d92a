"""Do the warm workers of a model fit on the GPU together, and how many may load at once?

An idle worker holds its weights and its CUDA context. One that loads or has its answers checked holds the weights as
they were loaded beside the prepared ones; the fp32 reference upcasts one matrix after another.
"""

from experiments.config import REQUEST_KINDS, ExperimentConfig, WorkloadConfig
from experiments.environment import Environment
from experiments.floors import DTYPE_BYTES, decode_work
from experiments.lengths import request_lengths
from experiments.models import Model

GIB = 2**30
# CUDA context, libraries and compiled kernels of a process; activations, logits and graphs of one that runs.
CONTEXT_BYTES = 1.5 * GIB
WORKSPACE_BYTES = 6 * GIB
USABLE = 0.92
CORES_TO_LOAD = 2
# Kinds of variant whose engine holds a cache for the largest cell for as long as it lives: tokens of a block of it.
KEEP_THEIR_CACHE = {"vllm": 16, "nano_vllm": 256}


def fit_together(model: Model, config: ExperimentConfig, gpu_memory_bytes: int) -> bool:
    """Whether one worker per variant fits at once; True where the model's sizes are not known before it is loaded."""
    return not model.sizes or warm_bytes(model, config) <= USABLE * gpu_memory_bytes


def load_at_once(model: Model, config: ExperimentConfig, environment: Environment) -> int:
    """How many workers may load and have their answers checked side by side, at least one.

    Each wants cores to compile on. On a GPU all must fit beside the rest; of a model whose sizes are not known, one.
    """
    most = max(1, environment.cpu_count // CORES_TO_LOAD)
    gpu = environment.gpu if config.device == "cuda" else None
    if gpu is None:
        return most
    if not model.sizes:
        return 1
    room = USABLE * gpu.memory_bytes - idle_bytes(model, config)
    return max(1, min(most, int(room // checking_bytes(model, config))))


def warm_bytes(model: Model, config: ExperimentConfig) -> float:
    """Bytes that all variants' workers take while one of them measures the largest cell, or checks its answers."""
    running = max(_largest_cache(model, config) + WORKSPACE_BYTES, checking_bytes(model, config))
    return idle_bytes(model, config) + running


def idle_bytes(model: Model, config: ExperimentConfig) -> float:
    """Bytes that all variants' workers take while none does anything."""
    # Ours give their cache back after each cell.
    kinds = [variant.kind for variant in config.variants if variant.kind in KEEP_THEIR_CACHE]
    kept = sum(_largest_cache(model, config, KEEP_THEIR_CACHE[kind]) for kind in kinds)
    return len(config.variants) * (_weights(model, config.dtype) + CONTEXT_BYTES) + kept


def checking_bytes(model: Model, config: ExperimentConfig) -> float:
    """Bytes that a worker takes beyond that while it loads and has its answers checked."""
    sizes = model.sizes
    largest_matrix = int(sizes["hidden_size"]) * max(int(sizes["vocab_size"]), 2 * int(sizes["intermediate_size"]))
    return _weights(model, config.dtype) + largest_matrix * DTYPE_BYTES["float32"] + WORKSPACE_BYTES


def _weights(model: Model, dtype: str) -> float:
    """What one decode step must read without a cache is what must be resident."""
    return float(decode_work(model.sizes, [], DTYPE_BYTES[dtype]).bytes)


def _largest_cache(model: Model, config: ExperimentConfig, block_tokens: int = 0) -> float:
    """Bytes for the largest cell; with `block_tokens` in whole blocks, with room for the tokens that are timed."""
    workloads = [workload for workload in config.workloads if workload.is_for(model.name)]
    dtype_bytes = DTYPE_BYTES[config.dtype]
    timed_tokens = config.protocol.windows * config.protocol.steps_per_window

    def tokens(context: int) -> int:
        if not block_tokens:
            return context
        return -(-(context + timed_tokens // 2 + 1) // block_tokens) * block_tokens

    cells = ([tokens(context) for context in _contexts(workload)] for workload in workloads)
    largest = max(decode_work(model.sizes, contexts, dtype_bytes).bytes for contexts in cells)
    return largest - _weights(model, config.dtype)


def _contexts(workload: WorkloadConfig) -> list[int]:
    """Tokens in the cache of each sequence at the workload's largest point."""
    if workload.kind == "offline":
        most = max(batch for batch, _ in workload.pairs())
        prompt, output = tuple(workload.input_tokens), tuple(workload.output_tokens)
        return [sum(request) for request in request_lengths(most, prompt, output)]
    if workload.kind in REQUEST_KINDS:
        longest = workload.input_tokens[1] + workload.output_tokens[1]
        return [longest] * min(max(batch for batch, _ in workload.pairs()), workload.max_num_seqs)
    # One more prompt puts a shared prefix into the cache. Ragged contexts add up to what equal ones do.
    first = workload.kind == "shared_prefix"
    batch, length = max(workload.pairs(), key=lambda pair: (pair[0] + first) * pair[1])
    return [length] * (batch + first)
