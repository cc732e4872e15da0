"""A small language model behind an OpenAI-compatible HTTP server that misbehaves on request.

The model predicts bytes: what its corpus goes on with, else a hash of the context. The server counts
what it receives before anything else, so that a client's own count can be held against it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from tests.conftest import context

END = 256
END_TEXT = "<|end|>"
CORPUS = (
    "The capital of France is Paris, and its river is the Seine. Monday, Tuesday, Wednesday, Thursday. "
    "one, two, three, four, five, six, seven, eight. Complete: The capital of Italy is Rome."
)


def encode(text: str) -> list[int]:
    """One token a byte."""
    return list(text.encode())


def decode(ids: Sequence[int]) -> str:
    """Text of tokens."""
    out, run = "", bytearray()
    for i in [*ids, END]:
        if i == END:
            out, run = out + run.decode(errors="replace") + END_TEXT, bytearray()
        else:
            run.append(i)
    return out.removesuffix(END_TEXT)


def next_logprobs(ids: Sequence[int]) -> np.ndarray:
    """(257,) float64 log p of the next token in nats."""
    tail = bytes(i for i in ids if i != END)[-12:]
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(tail).digest()[:8]))
    logits = rng.normal(0, 1.5, 257)
    logits[END] = -6
    logits[128:256] -= 12  # hardly a byte that is no ASCII
    for size in range(len(tail), 4, -1):
        at = CORPUS.encode().find(tail[-size:])
        if 0 <= at < len(CORPUS) - size:
            logits[CORPUS.encode()[at + size]] += 9
            break
    return logits - np.logaddexp.reduce(logits)


@dataclass
class Fault:
    """What happens to one request instead of an answer, or to its answer. wait_s: before anything is sent."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    spoil: Callable[[dict[str, Any]], Any] | None = None
    reset: bool = False
    drip_s: float = 0.0
    wait_s: float = 0.0


@dataclass
class Manners:
    """What the server can do and how it lies.

    echo: honest, ignored or zeros. bias: moves (log-probabilities too), steers (decoding alone) or nothing.
    """

    model: str = "toy"
    key: str = "sk-secret-0123456789"
    echo: str = "honest"
    bias: str = "moves"
    most: int = 20
    usage: bool = True
    prefill: bool = True
    ids: bool = True


class Toy:
    """The model and its answers, without HTTP."""

    def __init__(self, manners: Manners | None = None) -> None:
        self.manners = manners or Manners()

    def beside(self, path: str, body: dict[str, Any]) -> Any:
        """What a llama.cpp server offers beside the API."""
        if path == "/props":
            return {"eos_token": END_TEXT, "bos_token": "", "chat_template": "toy"}
        if path == "/tokenize":
            if body.get("parse_special") and body["content"] == END_TEXT:
                return {"tokens": [END]}
            return {"tokens": encode(body["content"])}
        if path == "/detokenize":
            return {"content": decode(body["tokens"])}
        if path == "/apply-template":
            return {
                "prompt": "".join(f"[{m['role']}]{m['content']}" for m in body["messages"]) + "[assistant]"
            }
        return {"data": [{"id": self.manners.model, "meta": {"n_vocab": 257}}]}

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and payload of an undisturbed request."""
        if body["model"] != self.manners.model:
            return 404, {"error": {"message": f"The model '{body['model']}' does not exist"}}
        chat, manners = path.endswith("chat/completions"), self.manners
        k = (body.get("top_logprobs", 0) if body.get("logprobs") else None) if chat else body.get("logprobs")
        if k is not None and k > manners.most:
            return 400, {"error": {"message": f"logprobs: at most {manners.most}, got {k}"}}
        given = ""
        if chat:
            messages = body["messages"]
            ids = encode("".join(m["content"] + " " for m in messages))
            if messages[-1]["role"] == "assistant":
                given = messages[-1]["content"]
                ids = encode(given) if manners.prefill else encode(given + " So")
        elif isinstance(body["prompt"], str):
            ids = encode(body["prompt"])
        elif manners.ids:
            ids = list(body["prompt"])
        else:
            return 400, {"error": {"message": "prompt: expected text"}}
        steps = self._decode(ids, body, k)
        if body.get("echo") and manners.echo != "ignored":
            start = [_step(i, None if n == 0 else next_logprobs(ids[:n]), k) for n, i in enumerate(ids)]
            steps = start + steps
            if manners.echo == "zeros":
                steps = [(i, 0.0, [(i, 0.0)]) for i, _, _ in steps]
        text = decode([i for i, _, _ in steps if i != END])
        finish = "stop" if steps and steps[-1][0] == END else "length"
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        if k is not None:
            choice["logprobs"] = {"content": [_chat_token(s) for s in steps]} if chat else _lists(steps)
        usage = {
            "prompt_tokens": len(ids),
            "completion_tokens": min(len(steps), body.get("max_tokens") or 99),
        }
        return 200, {
            "model": manners.model,
            "choices": [choice],
            **({"usage": usage} if manners.usage else {}),
        }

    def _decode(self, ids: list[int], body: dict[str, Any], k: int | None) -> list[Any]:
        steps: list[Any] = []
        rng = np.random.default_rng(body["seed"])
        for _ in range(body.get("max_tokens", body.get("max_completion_tokens"))):
            plain = next_logprobs(ids)
            biased = plain.copy()
            for token, value in (body.get("logit_bias") or {}).items():
                biased[int(token)] += value
            biased -= np.logaddexp.reduce(biased)
            decoded = plain if self.manners.bias == "nothing" else biased
            reported = biased if self.manners.bias == "moves" else plain
            if body["temperature"]:
                decoded = decoded / body["temperature"]
                token = int(rng.choice(257, p=np.exp(decoded - np.logaddexp.reduce(decoded))))
            else:
                token = int(decoded.argmax())
            steps.append(_step(token, reported, k))
            ids = [*ids, token]
            if token == END:
                break
        return steps


class Faulty:
    """The server. faults: by the number of the request, from 0; `requests` were received, `bodies` as sent."""

    def __init__(
        self, manners: Manners | None = None, faults: Callable[[int], Fault | None] | None = None
    ) -> None:
        self.toy, self.faults = Toy(manners), faults or (lambda n: None)
        self.bodies: list[dict[str, Any]] = []
        self.flying = self.most_flying = 0
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.url = f"http://localhost:{self.http.server_address[1]}/v1"

    @property
    def requests(self) -> int:
        """Requests to the model that were received."""
        return len(self.bodies)

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.reply(200, server.toy.beside(self.path, {}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self.path.startswith("/v1/"):
                    return self.reply(200, server.toy.beside(self.path, body))
                with server.lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.flying += 1
                    server.most_flying = max(server.most_flying, server.flying)
                try:
                    self.model(body, server.faults(number))
                finally:
                    with server.lock:
                        server.flying -= 1

            def model(self, body: dict[str, Any], fault: Fault | None) -> None:
                fault = fault or Fault()
                time.sleep(fault.wait_s)
                if fault.reset:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                    return
                if self.headers["Authorization"] != f"Bearer {server.toy.manners.key}":
                    message = f"Incorrect API key provided: {self.headers['Authorization']} at {server.url}"
                    return self.reply(401, {"error": {"message": message, "code": "invalid_api_key"}})
                if fault.body is not None or fault.status != 200:
                    text = (
                        fault.body
                        or f'{{"error": {{"message": "no, see {server.url}?key={server.toy.manners.key}"}}}}'
                    )
                    return self.reply(fault.status, text, fault.headers, fault.drip_s)
                status, payload = server.toy.answer(self.path, body)
                if fault.spoil is not None and status == 200:
                    payload = fault.spoil(payload)
                self.reply(status, payload, fault.headers, fault.drip_s)

            def reply(
                self, status: int, payload: Any, headers: dict[str, str] | None = None, drip_s: float = 0.0
            ) -> None:
                data = (payload if isinstance(payload, str) else json.dumps(payload)).encode()
                lines = [
                    f"HTTP/1.1 {status} X",
                    "Content-Type: application/json",
                    f"Content-Length: {len(data)}",
                ]
                lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
                head = ("\r\n".join(lines) + "\r\n\r\n").encode()
                with contextlib.suppress(OSError):  # the client may have gone
                    if not drip_s:
                        self.wfile.write(head + data)
                        return
                    self.wfile.write(head)
                    for i in range(len(data)):
                        self.wfile.write(data[i : i + 1])
                        time.sleep(drip_s)

        return Handler


def _step(token: int, logprobs: np.ndarray | None, k: int | None) -> tuple[int, float | None, Any]:
    if logprobs is None:
        return token, None, None
    order = np.argsort(-logprobs)[: k or 0]
    return token, float(logprobs[token]), [(int(i), float(logprobs[i])) for i in order]


def _chat_token(step: Any) -> dict[str, Any]:
    def one(i: int, p: float | None) -> dict[str, Any]:
        return {"id": i, "token": decode([i]), "bytes": [i] if i < END else [], "logprob": p}

    return {**one(step[0], step[1]), "top_logprobs": [one(*pair) for pair in step[2]]}


def _lists(steps: list[Any]) -> dict[str, Any]:
    """The completions dialect; ids as vLLM writes them."""
    return {
        "tokens": [f"token_id:{i}" for i, _, _ in steps],
        "token_logprobs": [p for _, p, _ in steps],
        "top_logprobs": [top and {f"token_id:{i}": p for i, p in top} for _, _, top in steps],
    }


@contextlib.contextmanager
def serving(
    manners: Manners | None = None, faults: Callable[[int], Fault | None] | None = None
) -> Iterator[Faulty]:
    """A running server."""
    server = Faulty(manners, faults)
    thread = threading.Thread(target=lambda: server.http.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join(5)


def connect(
    server: Faulty,
    *,
    template: str = "raw",
    batch: int = 4,
    timeout_s: float = 5.0,
    key: str | None = None,
    tokenizer: bool = True,
    retries: int = 5,
    real_sleep: bool = False,
    system: str | None = None,
    **surroundings: Any,
) -> Any:
    """An endpoint on the server as `open_endpoint` builds it, with time that passes when somebody sleeps."""
    from redteam.llm.endpoint import Endpoint
    from redteam.llm.exchange import Exchange, Server
    from redteam.llm.options import ModelOptions
    from redteam.llm.pace import Pacer
    from redteam.llm.tokenizers import open_tokenizer
    from redteam.llm.wire import Wire

    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        time.sleep(0.001)

    ctx = context(**surroundings)
    wire = Wire(server.url, key or server.toy.manners.key, timeout_s=timeout_s)
    tokens = open_tokenizer("server", "toy", template, system, wire.fetch) if tokenizer else None
    who = Server(
        model="toy", template=template, system=system, identity={"backend": "openai", "model": "toy"},
        tokens=tokens, place="here",
    )  # fmt: skip
    clock = {} if real_sleep else {"clock": lambda: now[0], "sleep": sleep}
    pacer = Pacer(batch, ctx.rng("endpoint"), retries=retries, **clock)
    options = ModelOptions(model="openai:toy", template=template, system=system, batch=batch)
    return Endpoint(Exchange(who, wire, pacer, ctx, "target"), options, no_tokens="no tokenizer is known")
