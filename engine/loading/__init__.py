"""Everything that turns `EngineConfig.model` into a config, weights and a tokenizer."""

from engine.loading.export import save_folder
from engine.loading.load import LoadedModel, load_model
from engine.loading.model_yaml import load_model_yaml, model_names
from engine.loading.tokenizer import StreamDecoder, Tokenizer

__all__ = ["LoadedModel", "StreamDecoder", "Tokenizer", "load_model", "load_model_yaml", "model_names", "save_folder"]
