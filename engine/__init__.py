"""The baseline LLM engine: dense decoders with a paged KV cache, continuous batching and CUDA graphs."""

from engine.config import EngineConfig, ModelConfig
from engine.engine import Engine
from engine.errors import EngineError, ModelError, RequestError, UserError
from engine.request import RequestOutput, SamplingParams
from engine.variant import BASELINE, Runtime, Variant

__all__ = [
    "BASELINE",
    "Engine",
    "EngineConfig",
    "EngineError",
    "ModelConfig",
    "ModelError",
    "RequestError",
    "RequestOutput",
    "Runtime",
    "SamplingParams",
    "UserError",
    "Variant",
]
