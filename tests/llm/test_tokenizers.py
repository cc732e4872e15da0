"""Tokenizers of models elsewhere: ids, text, bytes, and clear words where one is missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.errors import CapabilityError, ConfigError
from redteam.llm import tokenizers
from redteam.llm.tokenizers import TiktokenTokenizer, open_tokenizer
from tests.llm.faulty import END, Toy, encode

WORDS = {b" Paris": 256, b" the": 257, "é".encode(): 258, b"\n": 10}


@pytest.fixture
def encoding():
    """A tiktoken table of bytes and three words, made here: the real ones need a network."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([b]): b for b in range(256)} | {w: i for w, i in WORDS.items() if i >= 256}
    # Merges must be of two known parts, so the words' beginnings are known too.
    parts = [w[:n] for w in ranks if len(w) > 1 for n in range(2, len(w))]
    ranks |= {p: 259 + i for i, p in enumerate(dict.fromkeys(parts)) if p not in ranks}
    return tiktoken.Encoding(
        "mine", pat_str=r" ?\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 999}
    )


def test_tiktoken(encoding, monkeypatch):
    monkeypatch.setattr(tokenizers, "_tiktoken", lambda name: TiktokenTokenizer(encoding))
    monkeypatch.setattr(tokenizers, "_tiktoken_name", lambda model: "mine")
    tokens = open_tokenizer("auto", "toy", "raw")
    text = "Vive Paris é <|endoftext|>\n"
    ids = tokens.text.tokenize(text)
    assert tokens.text.detokenize(ids) == text and 999 not in ids
    assert tokens.text.encode(text) == ids and tokens.whole
    assert tokens.text.target_ids("Paris") == tokens.text.tokenize(" Paris")
    for raw, i in WORDS.items():
        assert tokens.id_of(raw) == i
    assert tokens.id_of(b"nothing of the kind") is None
    letters = set(tokens.vocabulary.tolist())
    assert ord("a") in letters and 257 in letters and not letters & {10, 200, 999}
    assert tokens.identity == {"tokenizer": "tiktoken:mine"}
    chat = open_tokenizer("tiktoken:mine", "toy", "chat")
    assert not chat.whole and chat.text.target_ids("Paris") == chat.text.tokenize("Paris")


@given(st.text(max_size=30))
def test_a_server_s_tokenizer_keeps_text(text):
    toy = Toy()
    tokens = open_tokenizer("server", "toy", "raw", None, toy.beside)
    assert tokens.text.detokenize(tokens.text.tokenize(text)) == text
    assert END not in tokens.text.tokenize(text + "<|end|>")


def test_a_server_s_vocabulary_is_what_comes_back_alone(monkeypatch):
    monkeypatch.setattr(tokenizers, "_CHUNK", 50)
    toy, asked = Toy(), []

    def fetch(path, body):
        asked.append(path)
        return toy.beside(path, body or {})

    tokens = open_tokenizer("server", "toy", "chat", "Be brief.", fetch)
    assert tokens.text.encode("ab") == encode("[system]Be brief.[user]ab[assistant]")
    asked.clear()
    np.testing.assert_array_equal(tokens.vocabulary, np.arange(32, 127))
    assert len(asked) < 20, "a chunk at a request, not a token"


def test_a_server_that_does_not_tell_its_vocabulary():
    toy = Toy()
    fetch = lambda path, body: {} if path == "/v1/models" else toy.beside(path, body or {})  # noqa: E731
    tokens = open_tokenizer("server", "toy", "raw", None, fetch)
    with pytest.raises(CapabilityError, match="hf:ID_OR_PATH or gguf:PATH"):
        _ = tokens.vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A transformers tokenizer on disk: bytes and a few merges, GPT-2's way."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {"Ġt": 256, "he": 257, "Ġthe": 258, "Ã©": 259, "<|end|>": 260}
    vocab = {c: i for i, c in enumerate(letters)} | pieces
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ã", "©")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    path = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>").save_pretrained(path)
    return path


def test_transformers(folder):
    tokens = open_tokenizer(f"hf:{folder}", "toy", "raw")
    ids = tokens.text.tokenize("all the é <|end|>")
    assert 258 in ids and 259 in ids and 260 not in ids
    assert tokens.text.detokenize(ids) == "all the é <|end|>"
    assert [tokens.id_of(raw) for raw in (b" the", "é".encode(), b"he", b"zz")] == [258, 259, 257, None]
    for b in range(256):  # every byte has its letter, and its id
        i = tokens.id_of(bytes([b]))
        assert i is not None and i < 256
    assert len({tokens.id_of(bytes([b])) for b in range(256)}) == 256
    assert 258 in tokens.vocabulary and 260 not in tokens.vocabulary
    other = open_tokenizer(f"hf:{folder}", "toy", "chat")
    assert not other.whole and other.identity == tokens.identity


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("tiktoken:", ConfigError, "expected tiktoken:NAME"),
        ("tiktoken:no-such-table", ConfigError, "tiktoken has .*cl100k_base"),
        ("words", ConfigError, "got 'words'"),
        ("server", ConfigError, "got 'server'"),
        ("auto", CapabilityError, "no tokenizer is known by the name 'toy'; name one with tokenizer ="),
        ("hf:/no/such/folder", ConfigError, "no tokenizer in the folder or the local cache"),
        ("gguf:/no/such/file.gguf", ConfigError, "there is no '/no/such/file.gguf'"),
    ],
)
def test_what_is_not_there_is_named(spec, error, message):
    pytest.importorskip("tiktoken")
    pytest.importorskip("transformers")
    with pytest.raises(error, match=message):
        open_tokenizer(spec, "toy", "raw")


def test_a_table_that_cannot_be_downloaded_is_named_with_a_way_out(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")

    def offline(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    tokenizers._tiktoken.cache_clear()
    with pytest.raises(
        ConfigError, match=r"'o200k_base' is not on this machine.*TIKTOKEN_CACHE_DIR.*gguf:PATH"
    ):
        open_tokenizer("auto", "gpt-4o", "chat")
