"""Do the warm workers of a model fit on the GPU together? An idle worker holds its weights and its CUDA context."""

from experiments.config import REQUEST_KINDS, ExperimentConfig, WorkloadConfig
from experiments.floors import DTYPE_BYTES, decode_work
from experiments.models import Model

GIB = 2**30
# CUDA context, libraries and compiled kernels of a process; activations, logits and graphs of the one that measures.
CONTEXT_BYTES = 1.5 * GIB
WORKSPACE_BYTES = 6 * GIB
USABLE = 0.92
# Kinds of variant whose engine holds a cache for the largest cell for as long as it lives.
KEEP_THEIR_CACHE = ("vllm", "nano_vllm")


def fit_together(model: Model, config: ExperimentConfig, gpu_memory_bytes: int) -> bool:
    """Whether one worker per variant fits at once; True where the model's sizes are not known before it is loaded."""
    return not model.sizes or warm_bytes(model, config) <= USABLE * gpu_memory_bytes


def warm_bytes(model: Model, config: ExperimentConfig) -> float:
    """Bytes that all variants' workers take while one of them measures the largest cell, or checks its answers."""
    dtype_bytes = DTYPE_BYTES[config.dtype]
    # What one decode step must read is what must be resident: weights and cache.
    weights = decode_work(model.sizes, [], dtype_bytes).bytes
    workloads = [workload for workload in config.workloads if workload.is_for(model.name)]
    largest = max(decode_work(model.sizes, _contexts(w), dtype_bytes).bytes for w in workloads) - weights
    reference = decode_work(model.sizes, [], DTYPE_BYTES["float32"]).bytes
    # Ours give their cache back after each cell.
    kept = sum(variant.kind in KEEP_THEIR_CACHE for variant in config.variants) * largest
    return len(config.variants) * (weights + CONTEXT_BYTES) + kept + max(largest, reference + weights) + WORKSPACE_BYTES


def _contexts(workload: WorkloadConfig) -> list[int]:
    """Tokens in the cache of each sequence at the workload's largest point."""
    if workload.kind in REQUEST_KINDS:
        longest = workload.input_tokens[1] + workload.output_tokens[1]
        most = max(batch for batch, _ in workload.pairs())
        return [longest] * (min(most, workload.max_num_seqs) if workload.kind == "serving" else most)
    # One more prompt puts a shared prefix into the cache. Ragged contexts add up to what equal ones do.
    first = workload.kind == "shared_prefix"
    batch, length = max(workload.pairs(), key=lambda pair: (pair[0] + first) * pair[1])
    return [length] * (batch + first)
