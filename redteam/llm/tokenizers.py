"""Tokenizers of models that are not in this process: tiktoken, transformers, or a llama.cpp server's own.

Each becomes a `redteam.llm.local_text.Text`, the same that local models stand behind, so that a prompt
has the same ids whether its model runs here or elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redteam.core.errors import BackendError, CapabilityError, ConfigError
from redteam.core.hashing import digest_json
from redteam.llm.local_load import DOWNLOAD, find_gguf, load_tokenizer, need_transformers
from redteam.llm.local_text import Text, open_text

if TYPE_CHECKING:
    import numpy as np

    from redteam.llm.language import Template

Fetch = Callable[[str, Mapping[str, Any] | None], Any]
_CHUNK = 1024  # tokens of a vocabulary that a server is asked about at once
_ANY_SIZE = 2**31  # how many ids a network knows that we cannot look into


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenizer behind a template.

    text: prompts to ids and back. whole: whether `text` knows the chat template, or only the user's part.
    identity: what it is, for fingerprints. id_of: the id of a token by its bytes, None if there is none.
    """

    text: Text
    whole: bool
    identity: Mapping[str, Any]
    id_of: Callable[[bytes], int | None]
    list_vocabulary: Callable[[], np.ndarray] | None = None

    @cached_property
    def vocabulary(self) -> np.ndarray:
        """(V,) int64, see `redteam.llm.language.LanguageModel.vocabulary`."""
        return self.text.vocabulary if self.list_vocabulary is None else self.list_vocabulary()


def open_tokenizer(
    spec: str, model: str, template: Template, system: str | None = None, fetch: Fetch | None = None
) -> Tokens:
    """Open `tiktoken:NAME`, `hf:ID_OR_PATH`, `gguf:PATH`, `server`, or `auto`, which is tiktoken by the model's name.

    fetch: JSON from a path of the server, POST if there is a body, for `server`.

    Raises:
        ConfigError: unknown, not installed, or not on this machine. CapabilityError: `auto` finds none.
    """
    backend, _, name = spec.partition(":")
    if backend == "server" and fetch is not None:
        return _from_server(ServerTokenizer(fetch), template, system)
    if backend == "tiktoken" and name:
        return _from_tiktoken(_tiktoken(name), name, template)
    if backend in ("hf", "gguf") and name:
        return _from_transformers(backend, name, template, system)
    if spec == "auto":
        encoding = _tiktoken_name(model)
        return _from_tiktoken(_tiktoken(encoding), encoding, template)
    raise ConfigError(
        f"tokenizer: expected tiktoken:NAME, hf:ID_OR_PATH, gguf:PATH, server or auto, got '{spec}'"
    )


def _behind(tokenizer: Any, template: Template, system: str | None) -> tuple[Text, bool]:
    """Its text handling, with the chat template where the tokenizer brings one."""
    known: dict[str, Any] = {"stops": frozenset(), "size": _ANY_SIZE}
    if template == "raw":
        return open_text(tokenizer, "raw", None, **known), True
    if tokenizer.chat_template:
        return open_text(tokenizer, "chat", system, **known), True
    return replace(
        open_text(tokenizer, "raw", None, **known), template="chat", head=(), answer_lead=""
    ), False


# ---------------------------------------------------------------- tiktoken


class TiktokenTokenizer:
    """What `redteam.llm.local_text` asks of a tokenizer, answered by tiktoken."""

    chat_template = None
    eos_token_id = None
    unk_token_id = None
    all_special_ids: Sequence[int] = ()
    added_tokens_decoder: Mapping[int, Any] = {}

    def __init__(self, encoding: Any) -> None:
        self.encoding = encoding
        special = {encoding.encode_single_token(token) for token in encoding.special_tokens_set}
        self._pieces = {
            i: raw
            for i in range(encoding.n_vocab)
            if i not in special and (raw := _piece_or_none(encoding, i)) is not None
        }

    def __len__(self) -> int:
        return int(self.encoding.n_vocab)

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        """Ids of text; nothing in it is special."""
        if isinstance(text, str):
            return {"input_ids": self.encoding.encode_ordinary(text)}
        return {"input_ids": [self.encoding.encode_ordinary(t) for t in text]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Text of ids; ids that are no ordinary token become the replacement character."""
        return b"".join(self._pieces.get(i, b"\xff") for i in ids).decode("utf-8", "replace")

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Tokens as text."""
        return [self.decode([i]) for i in ids]

    def id_of(self, raw: bytes) -> int | None:
        """The id of a token by its bytes."""
        try:
            return int(self.encoding.encode_single_token(raw))
        except KeyError:
            return None


def _piece_or_none(encoding: Any, i: int) -> bytes | None:
    try:
        return bytes(encoding.decode_single_token_bytes(i))
    except KeyError:  # ids are not contiguous
        return None


def _library() -> Any:
    try:
        import tiktoken
    except ImportError:
        raise ConfigError("tokenizer: tiktoken needs the extra llm: pip install 'redteam[llm]'") from None
    return tiktoken


def _tiktoken_name(model: str) -> str:
    try:
        return str(_library().encoding_name_for_model(model))
    except KeyError:
        raise CapabilityError(
            f"no tokenizer is known by the name '{model}'; name one with tokenizer = 'tiktoken:NAME', "
            "'hf:ID_OR_PATH', 'gguf:PATH', or 'server' for a llama.cpp server"
        ) from None


@lru_cache(maxsize=4)
def _tiktoken(name: str) -> TiktokenTokenizer:
    library = _library()
    known = library.list_encoding_names()
    if name not in known:
        raise ConfigError(f"tokenizer: tiktoken has {', '.join(known)}; got '{name}'")
    try:
        encoding = library.get_encoding(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tokenizer: tiktoken's table '{name}' is not on this machine and cannot be downloaded "
            f"({type(error).__name__}); fetch it once where there is a network and set TIKTOKEN_CACHE_DIR to "
            "its folder, or name another tokenizer: hf:ID_OR_PATH or gguf:PATH"
        ) from None
    return TiktokenTokenizer(encoding)


def _from_tiktoken(tokenizer: TiktokenTokenizer, name: str, template: Template) -> Tokens:
    text, _ = _behind(tokenizer, template, None)
    return Tokens(text, template == "raw", {"tokenizer": f"tiktoken:{name}"}, tokenizer.id_of)


# ---------------------------------------------------------------- transformers


@lru_cache(maxsize=4)
def _hf(name: str) -> Any:
    library = need_transformers()
    allowed = os.environ.get(DOWNLOAD) == "1"
    try:
        return library.AutoTokenizer.from_pretrained(name, local_files_only=not allowed)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"tokenizer: no tokenizer in the folder or the local cache under '{name}'; set {DOWNLOAD}=1 to "
            f"allow a download ({first})"
        ) from None


def _from_transformers(backend: str, name: str, template: Template, system: str | None) -> Tokens:
    tokenizer = load_tokenizer(find_gguf(name)) if backend == "gguf" else _hf(str(Path(name).expanduser()))
    text, whole = _behind(tokenizer, template, system)
    content = digest_json([tokenizer.get_vocab(), tokenizer.chat_template])
    return Tokens(text, whole, {"tokenizer": f"transformers:{content}"}, _pieces(tokenizer).get)


def _pieces(tokenizer: Any) -> dict[bytes, int]:
    """Bytes to id. Where two tokens have the same bytes, a byte of its own gives way to a piece of text."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    of_bytes = (
        {c: b for b, c in enumerate(_byte_letters())} if any("\u0120" in t for t in tokens if t) else None
    )
    out: dict[bytes, int] = {}
    for i, token in enumerate(tokens):
        if not token or i in tokenizer.all_special_ids:
            continue
        if token.startswith("<0x") and token.endswith(">") and len(token) == 6:
            out.setdefault(bytes([int(token[3:5], 16)]), i)
        elif of_bytes is None:
            out[token.replace("\u2581", " ").encode()] = i
        elif all(c in of_bytes for c in token):
            out[bytes(of_bytes[c] for c in token)] = i
    return out


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level vocabularies, as GPT-2 has it."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(256))
    return [chr(b) if b in plain else chr(256 + next(spare)) for b in range(256)]


# ---------------------------------------------------------------- llama.cpp


class ServerTokenizer:
    """What `redteam.llm.local_text` asks of a tokenizer, answered by a llama.cpp server over HTTP."""

    unk_token_id = None
    added_tokens_decoder: Mapping[int, Any] = {}

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = lru_cache(maxsize=4096)(lambda text, add, special: self._ask(fetch, text, add, special))
        self._post = fetch
        props = fetch("/props", None)
        if not isinstance(props, dict):
            raise BackendError("expected a llama.cpp server, whose /props is an object")
        self.chat_template = props.get("chat_template")
        self.end = str(props.get("eos_token") or "")
        ends = self._fetch(self.end, False, True) if self.end else ()
        self.eos_token_id = ends[0] if len(ends) == 1 else None
        self.all_special_ids = list(ends) if len(ends) == 1 else []
        self._spaced = self.decode(self._fetch("x", False, False)).startswith(" ")

    def __len__(self) -> int:
        models = self._post("/v1/models", None)
        try:
            return int(models["data"][0]["meta"]["n_vocab"])
        except (KeyError, IndexError, TypeError, ValueError):
            return 0

    def __call__(
        self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False, **_: Any
    ) -> dict[str, Any]:
        """Ids of text. split_special_tokens: nothing in it is special."""
        return {"input_ids": list(self._fetch(text, add_special_tokens, not split_special_tokens))}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Text of ids."""
        return str(self._post("/detokenize", {"tokens": list(ids)})["content"])

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Whether the tokenizer puts a space before bare text, in the notation of SentencePiece."""
        return ["\u2581" if self._spaced else "" for _ in ids]

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **_: Any) -> str:
        """The messages as the model's template renders them."""
        return str(self._post("/apply-template", {"messages": list(messages)})["prompt"])

    def vocabulary(self) -> np.ndarray:
        """(V,) int64 ids of printable tokens that encode back to themselves, a thousand at a request."""
        import numpy as np

        size = len(self)
        if self.eos_token_id is None or not size:
            raise CapabilityError(
                "the server does not tell what tokens it has; name its tokenizer with hf:ID_OR_PATH or gguf:PATH"
            )
        found: list[int] = []
        line = self._fetch("\n", False, False)
        for start in range(0, size, _CHUNK):
            ids = [i for i in range(start, min(start + _CHUNK, size)) if i != self.eos_token_id]
            text = self.decode([token for i in ids for token in (i, self.eos_token_id)])
            found += self._stable(ids, text.split(self.end)[:-1], line)
        return np.array(found, np.int64)

    def _stable(self, ids: Sequence[int], pieces: Sequence[str], line: Sequence[int]) -> list[int]:
        """Those of `ids` whose text, on a line of its own, is tokenised as just that id."""
        if len(pieces) != len(ids) or len(line) != 1:
            return []
        good = {p: i for i, p in zip(ids, pieces, strict=True) if p and p.isprintable() and "\ufffd" not in p}
        rows: list[list[int]] = [[]]
        for token in self._fetch("\n".join(["", *good, ""]), False, False):
            if token == line[0]:
                rows.append([])
            else:
                rows[-1].append(token)
        alone = {row[0] for row in rows if len(row) == 1}
        return [i for i in good.values() if i in alone]

    @staticmethod
    def _ask(fetch: Fetch, text: str, add: bool, special: bool) -> tuple[int, ...]:
        reply = fetch("/tokenize", {"content": text, "add_special": add, "parse_special": special})
        return tuple(int(i) for i in reply["tokens"])


def _from_server(tokenizer: ServerTokenizer, template: Template, system: str | None) -> Tokens:
    text, whole = _behind(tokenizer, template, system)
    return Tokens(text, whole, {"tokenizer": "server"}, lambda raw: None, tokenizer.vocabulary)
