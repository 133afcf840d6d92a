"""A rank above 0, from its start to its end."""

import contextlib
import gc
import os
import pickle
import signal
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from engine.build import build_runner
from engine.config import EngineConfig, ModelConfig
from engine.errors import UserError
from engine.loading import load_model
from engine.parallel.device import rank_device
from engine.parallel.ranks import Ranks, meeting_point
from engine.parallel.shards import shard_config
from engine.parallel.sharing import share_weights
from engine.runner import Runner
from engine.variant import Variant

READY, BUILD, DROP = "ready", "build", "drop"


def follow(pipe: Connection, port: int, ranks: Ranks, device: str, threads: int) -> None:
    """Do what rank 0 says until its end of the pipe is closed. `port` is that of its store."""
    # Ctrl-C reaches every process of a terminal; what follows from it is rank 0's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    code = 0
    try:
        own_device = rank_device(device, ranks.rank, ranks.size)
        if own_device.type == "cuda":
            torch.cuda.set_device(own_device)
        pipe.send(READY)
        ranks.connect(meeting_point(port), own_device)
        with torch.inference_mode():
            _obey(pipe, ranks)
    except (EOFError, ConnectionError):
        pass  # Rank 0 has closed its end, or is gone.
    except BaseException as error:
        code = 1
        _say(pipe, error)
    # Nothing of what is left may wait for a rank that is no more.
    os._exit(code)


def _obey(pipe: Connection, ranks: Ranks) -> None:
    runners: dict[int, Runner] = {}
    while True:
        number, name, args, kwargs = pickle.loads(pipe.recv_bytes())
        if name == BUILD:
            runners[number] = _build(ranks, *args)
        elif name == DROP:
            runners.pop(number, None)
            gc.collect()
            if ranks.device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            getattr(runners[number], name)(*args, **kwargs)


def _build(ranks: Ranks, config: EngineConfig, variant: Variant, model: ModelConfig | None) -> Runner:
    """A runner of weights that this rank loads itself, or, of the given model, that rank 0 hands round."""
    config = replace(config, device=str(ranks.device))
    dtype: torch.dtype = getattr(torch, config.dtype)
    if model is not None:
        weights = share_weights(model, None, dtype, ranks)
    else:
        loaded = load_model(config.model, dtype, ranks.device, config.seed, ranks)
        model, weights = loaded.config, loaded.weights
        del loaded
    weights = variant.prepare(weights, shard_config(model, ranks.size))
    return build_runner(config, variant, model, weights, ranks)


def _say(pipe: Connection, error: BaseException) -> None:
    """Tell rank 0 why this rank ends; a user's own mistake needs no traceback."""
    if not isinstance(error, UserError):
        traceback.print_exception(error)
    with contextlib.suppress(OSError):
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])
