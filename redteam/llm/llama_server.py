"""The process of `redteam.llm.llama`: a llama.cpp server that ends with its parent. Not for import."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import threading
import time
from typing import Any


def serve(settings: dict[str, Any]) -> None:
    """Load, say the address on standard output as one line of JSON, and serve until standard input ends.

    settings: `path` of the weights, `alias`, `context` in tokens, `threads`, and `folder`, which is removed
    at the end.
    """
    llama: Any = importlib.import_module("xllamacpp")
    parent = os.getppid()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever llama.cpp prints belongs with its messages
    folder = settings["folder"]
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    params = llama.CommonParams()
    params.model.path = settings["path"]
    params.model_alias = {settings["alias"]}
    params.n_ctx = settings["context"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    # One slot and no prompt cache: else a loss depends on what was asked before. Measured on Q4_1 with the
    # cache: up to 0.2 nats among the fifty likeliest tokens; without it, none.
    params.n_parallel, params.cache_prompt = 1, False
    spare = {"cache_ram_mib": 0, "warmup": False, "ui": False, "endpoint_slots": False, "verbosity": 2}
    for name, value in spare.items():
        if hasattr(params, name):  # not every version has all of them
            setattr(params, name, value)
    # Plain sampling from the model's own distribution, unless a request says otherwise.
    params.sampling.top_k, params.sampling.top_p, params.sampling.min_p = 0, 1.0, 0.0
    params.port = 0
    server = llama.Server(params)
    print(json.dumps({"address": server.listening_address}), file=out, flush=True)
    while os.getppid() == parent:
        time.sleep(0.5)
    _end(folder)  # the parent died, and a process it forked keeps our input open


def _end_with_parent(folder: str) -> None:
    """Standard input ends when the parent closes it, or dies."""
    sys.stdin.buffer.read()
    _end(folder)


def _end(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
