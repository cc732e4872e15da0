"""One request over the `openai` package: sent once, its failure classified, nothing secret let out.

No exception that leaves this module has one of the HTTP library's behind it: those carry the request,
and with it the key and the address.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from redteam.core.errors import BackendError, ConfigError
from redteam.llm.language import Finish
from redteam.llm.pace import TransientError, retry_after
from redteam.llm.replies import Api

LARGEST_REPLY = 256 * 2**20  # bytes; two thousand alternatives for one token take about 200 KiB
_LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
_KEY = re.compile(r"\b(sk|pk|rk)-[\w*.\-]{4,}|(?i:bearer)\s+\S+")
_URL = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.\-]*://\S+")
_FILTERED = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
_BROKE = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


class RejectedError(Exception):
    """A request that the endpoint will not answer however often it is sent. finish: how that counts."""

    def __init__(self, message: str, finish: Finish = "error") -> None:
        super().__init__(message)
        self.finish: Finish = finish


class Scrubber:
    """Takes a key and an address out of text."""

    def __init__(self, key: str, base_url: str) -> None:
        parts = urllib.parse.urlsplit(base_url)
        secrets = {key: "[key]", urllib.parse.quote(key, safe=""): "[key]", parts.password or "": "[key]"}
        for place in (
            base_url,
            base_url.rstrip("/"),
            parts.netloc,
            parts.hostname or "",
            parts.username or "",
        ):
            secrets.setdefault(place, "[endpoint]")
        self._secrets = sorted(((s, put) for s, put in secrets.items() if s), key=lambda pair: -len(pair[0]))

    def __call__(self, text: str) -> str:
        """The text without them, and without anything that looks like any key or any address."""
        for secret, put in self._secrets:
            text = re.sub(re.escape(secret), put, text, flags=re.IGNORECASE)
        return _KEY.sub("[key]", _URL.sub("[address]", text))


class Wire:
    """The connection to one endpoint. Its address and key stay in here."""

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        timeout_s: float = 120.0,
        direct: bool = False,
        why_lost: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            base_url: root of the API, usually ending in /v1.
            key: sent as the bearer token.
            timeout_s: longest wait for a byte, and for a whole reply.
            direct: use no proxy that the environment names, for a server of our own.
            why_lost: after a broken connection, why the server is gone for good; nothing if it may come back.
            clock: monotonic seconds.

        Raises:
            ConfigError: the package `openai` is not installed, or the address is none.
        """
        try:
            import openai
        except ImportError:
            raise ConfigError("an endpoint needs the extra llm: pip install 'redteam[llm]'") from None
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("OPENAI_BASE_URL: expected an address that begins with http:// or https://")
        self.scrub, self._openai = Scrubber(key, base_url), openai
        self._timeout_s, self._clock, self._why_lost = timeout_s, clock, why_lost
        self._root = base_url.rstrip("/").removesuffix("/v1")
        self._broken = tuple(library.HTTPError for library in _http_libraries())
        for name in _LOGGERS:  # at lower levels they log addresses
            logger = logging.getLogger(name)
            logger.setLevel(max(logger.getEffectiveLevel(), logging.WARNING))
        client = openai.DefaultHttpxClient(verify=_certificates(), trust_env=not direct)
        timeout = openai.Timeout(timeout_s, connect=min(timeout_s, 10.0))
        self._client = openai.OpenAI(
            api_key=key, base_url=base_url, max_retries=0, timeout=timeout, http_client=client
        )

    def send(self, api: Api, body: Mapping[str, Any]) -> Any:
        """One attempt; the decoded JSON of the reply.

        Raises:
            TransientError: it may be sent again. RejectedError: this request never gets an answer.
            BackendError: no request ever will.
        """
        calls: Any = self._client.chat.completions if api == "chat" else self._client.completions
        return self._once(lambda: calls.with_streaming_response.create(**body))

    def fetch(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """JSON from a path beside the API, such as llama.cpp's /tokenize; asks three times. Not for models.

        Raises:
            BackendError: it does not answer.
        """
        message, url = "", self._root + path
        for _ in range(3):
            try:
                if body is None:
                    return self._client.get(url, cast_to=object)
                return self._client.post(url, cast_to=object, body=dict(body))
            except self._openai.APIStatusError as error:
                message = f"HTTP {error.status_code}"
            except (self._openai.OpenAIError, *self._broken, ValueError) as error:
                message = type(error).__name__
        raise BackendError(self._lost() or f"the endpoint's {path} does not answer ({message})")

    def close(self) -> None:
        """Drop the connections."""
        self._client.close()

    def _lost(self) -> str:
        return self.scrub(self._why_lost())

    def _once(self, begin: Callable[[], Any]) -> Any:
        failure: Exception
        try:
            with begin() as reply:
                data = self._read(reply)
            return json.loads(data)
        except self._openai.APIStatusError as error:
            failure = self._judge(error)
        except self._openai.APITimeoutError:
            failure = TransientError(f"no answer within {self._timeout_s:g} s", timeout=True)
        except self._openai.APIConnectionError as error:
            failure = TransientError(f"no connection ({type(error.__cause__ or error).__name__})")
        except self._broken as error:  # while the body was read
            timeout = "Timeout" in type(error).__name__
            what = f"no whole answer within {self._timeout_s:g} s" if timeout else "the connection broke"
            failure = TransientError(f"{what} ({type(error).__name__})", timeout=timeout)
        except (ValueError, RecursionError):
            failure = TransientError("malformed reply: expected JSON")
        except TransientError as error:
            failure = error
        except self._openai.OpenAIError as error:
            failure = BackendError(f"the openai package gave up: {type(error).__name__}")
        if isinstance(failure, TransientError) and (gone := self._lost()):
            failure = BackendError(gone)
        raise failure  # out of the handlers, so that no other exception hangs on it

    def _read(self, reply: Any) -> bytes:
        """The whole body; a server that sends a byte now and then does not hold us for ever."""
        end, data = self._clock() + self._timeout_s, bytearray()
        for chunk in reply.iter_bytes():
            data += chunk
            if self._clock() > end:
                raise TransientError(f"no whole answer within {self._timeout_s:g} s", timeout=True)
            if len(data) > LARGEST_REPLY:
                raise TransientError(f"malformed reply: more than {LARGEST_REPLY} bytes")
        return bytes(data)

    def _judge(self, error: Any) -> Exception:
        """What an HTTP status of 400 and above means."""
        status, code = int(error.status_code), str(getattr(error, "code", None) or "")
        said = self._said(error)
        after = retry_after({k.lower(): v for k, v in error.response.headers.items()}, time.time())
        if status in (401, 403):
            return BackendError(f"HTTP {status}: the endpoint rejects the key; check OPENAI_API_KEY")
        if status == 404:
            return BackendError(
                "HTTP 404: the endpoint knows no such model, or OPENAI_BASE_URL is not the root of an "
                f"OpenAI-compatible API (it usually ends in /v1){said}"
            )
        if code in _BROKE or status == 402:
            return BackendError(f"HTTP {status}: the account has no credit left{said}")
        if status == 429 or (status in (503, 529) and after is not None):
            wait = f"; it wants {after:g} s of rest" if after else ""
            return TransientError(
                f"HTTP {status}: asked too fast{wait}", limited=True, after_s=after, billed=False
            )
        if status in (408, 409, 425) or status >= 500:
            return TransientError(f"HTTP {status}", after_s=after, billed=False)
        if code in _FILTERED or any(word in str(error.body) for word in _FILTERED):
            return RejectedError(f"HTTP {status}: the provider's content filter", "filtered")
        return RejectedError(f"HTTP {status}: the request is refused{said}")

    def _said(self, error: Any) -> str:
        body = error.body if isinstance(error.body, dict) else {}
        message = body.get("message") or body.get("detail") or body.get("error")
        return f": {self.scrub(message)[:200]}" if isinstance(message, str) else ""


def _http_libraries() -> list[Any]:
    """What `openai` speaks HTTP with, whichever its version uses."""
    names = ("httpx2", "httpx")
    return [importlib.import_module(name) for name in names if importlib.util.find_spec(name) is not None]


@lru_cache(maxsize=1)
def _certificates() -> Any:
    """The certificates that are trusted, read once: reading them takes longer than a local request."""
    return _http_libraries()[0].create_ssl_context()
