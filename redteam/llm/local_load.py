"""Weights and tokenizers of local models: found offline, checked, loaded once for a process.

A target, a proxy and a defence that name the same weights share one network (`load_network`).
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redteam.core.errors import BackendError, ConfigError, DataError
from redteam.core.hashing import digest_json
from redteam.llm.gguf import digest_of, resolve_gguf
from redteam.llm.prefix import EMPTY, Ids, Prefix, Prefixes, prefix_of

if TYPE_CHECKING:
    import torch

DOWNLOAD = "REDTEAM_DOWNLOAD"
_NEEDED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
# Positions of a batch that one forward pass costs by itself. CPU, 135M parameters, one core: a pass over one
# row takes as long as 45 more; plans made with 96 or 160 took 3 to 10 % less than with 16 or 48 (4 turns on
# a busy machine). Elsewhere launching the kernels costs more than thousands of positions (an estimate).
_PASS_COST = {"cpu": 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where weights are, and what they are: two sources are equal if their content is.

    content: sha256 of a GGUF file or of a folder's files. revision: the commit of a hub id, else None.
    gguf: the file's name in `folder`, or None for a folder of safetensors.
    """

    content: str
    revision: str | None = None
    folder: Path = field(compare=False)
    gguf: str | None = field(default=None, compare=False)

    @property
    def path(self) -> Path:
        """The file or the folder."""
        return self.folder / self.gguf if self.gguf else self.folder

    def arguments(self) -> dict[str, Any]:
        """What `from_pretrained` is given. Never the network, never code from the model's folder."""
        extra = {"gguf_file": self.gguf} if self.gguf else {}
        return {"pretrained_model_name_or_path": str(self.folder), "local_files_only": True, **extra}


def find_gguf(name: str) -> Source:
    """The source of `gguf:NAME`; see `redteam.llm.gguf.resolve_gguf` for names and errors."""
    path = resolve_gguf(name)
    return Source(content=digest_of(path), folder=path.parent, gguf=path.name)


def find_hf(name: str) -> Source:
    """The source of `hf:NAME`: a local folder, or a hub id that is in the local cache.

    A hub id is downloaded only where the environment says REDTEAM_DOWNLOAD=1.

    Raises:
        ConfigError: no such folder and nothing cached. DataError: a folder without safetensors.
    """
    folder, revision = Path(name).expanduser(), None
    if not name or not folder.is_dir():
        if not name or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise ConfigError(f"hf: expected a model id or a folder; there is no folder '{name}'")
        folder = _snapshot(name)
        revision = folder.name
    files = sorted({p for pattern in _NEEDED for p in folder.glob(pattern)})
    if not (folder / "config.json").is_file() or not any(p.suffix == ".safetensors" for p in files):
        raise DataError(
            f"expected config.json and .safetensors weights in {folder}, found "
            f"{', '.join(p.name for p in files) or 'nothing'}; pickled weights (.bin) are never loaded"
        )
    content = f"commit:{revision}" if revision else digest_json({p.name: digest_of(p) for p in files})
    return Source(content=content, revision=revision, folder=folder)


def _snapshot(name: str) -> Path:
    """The folder of a hub id in the local cache."""
    need_transformers()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    allowed = os.environ.get(DOWNLOAD) == "1"
    try:
        return Path(snapshot_download(name, allow_patterns=list(_NEEDED), local_files_only=not allowed))
    except HFValidationError as error:
        raise ConfigError(
            f"hf: expected a model id such as ORGANISATION/MODEL, got '{name}': {error}"
        ) from None
    except LocalEntryNotFoundError:
        raise ConfigError(
            f"'{name}' is neither a folder nor in the local cache of models. Opening it would download its "
            f"weights (.safetensors), configuration and tokenizer; set {DOWNLOAD}=1 to allow that"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(f"cannot download '{name}' ({type(error).__name__}): is its name right?") from None


def need_transformers() -> Any:
    """The library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import transformers as library
    except ImportError:
        raise ConfigError("a local model needs the extra llm: pip install 'redteam[llm]'") from None
    return library


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars of loading, which go to standard error whatever the settings."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _missing(source: Source, error: ImportError) -> ConfigError:
    first = str(error).strip().split("\n")[0]
    return ConfigError(f"loading {source.path} needs the extra llm: pip install 'redteam[llm]' ({first})")


@lru_cache(maxsize=4)
def load_tokenizer(source: Source) -> Any:
    """The tokenizer of a source.

    Raises:
        BackendError: it cannot be read.
    """
    library = need_transformers()
    try:
        with _quiet():
            return library.AutoTokenizer.from_pretrained(**source.arguments())
    except ImportError as error:
        raise _missing(source, error) from None
    except (OSError, ValueError, KeyError) as error:
        raise BackendError(f"no tokenizer could be loaded from {source.path}: {error}") from None


@dataclass(frozen=True, eq=False)
class Network:
    """A loaded network. limit: its longest context in tokens, None if unknown. caches: whether beginnings
    can be shared (`redteam.llm.prefix`), which is tried out once. padded: whether a gap in the middle of
    a row changes nothing, which windowed attention breaks. stops: ids that end an answer.
    """

    module: Any
    device: torch.device
    vocabulary: int
    limit: int | None
    caches: bool
    padded: bool
    stops: frozenset[int]
    pass_cost: int
    prefixes: Prefixes = field(default_factory=Prefixes)

    def forward(self, ids: torch.Tensor, keep: int, **given: Any) -> Any:
        """Logits of the last `keep` positions and the cache. ids: (n, l) int64."""
        return _forward(self.module, ids.to(self.device), keep, **given)

    def run(
        self, rows: Sequence[Ids], prefix: Prefix, tail: int, *, caching: bool
    ) -> tuple[Iterator[torch.Tensor], Any]:
        """Each row's logits at its last `tail` positions, (tail, V) float32, and the cache if there is one.

        rows: each begins with `prefix` and is longer. They are padded on the right, where nothing looks.
        """
        import torch

        fed = [row[len(prefix.ids) :] for row in rows]
        longest = max(map(len, fed))
        ids = torch.tensor([[*f, *[0] * (longest - len(f))] for f in fed])
        given: dict[str, Any] = {"use_cache": caching or bool(prefix.ids)}
        if given["use_cache"]:  # a cache of our own, also when empty: theirs may forget what left a window
            given["past_key_values"] = prefix.cache(len(rows))
        out = self.forward(ids, longest - min(map(len, fed)) + tail, **given)
        ends = [out.logits.shape[1] - longest + len(f) for f in fed]
        logits = (out.logits[i, end - tail : end].float() for i, end in enumerate(ends))
        return logits, out.past_key_values if caching else None

    def extend(self, prefix: Prefix, ids: Ids) -> Prefix:
        """The state of `ids`, which begin with `prefix`; it is kept for the next call."""
        if len(prefix.ids) < len(ids):
            _, cache = self.run([ids], prefix, 1, caching=True)
            longer = prefix_of(cache, ids)
            assert longer is not None, "tried out when the network was loaded"
            prefix = longer
            self.prefixes.add(prefix)
        return prefix


def _forward(module: Any, ids: Any, keep: int, **given: Any) -> Any:
    names = signature(module.forward).parameters
    # Named num_logits_to_keep before transformers 4.50, and unknown to some architectures.
    option = next((n for n in ("logits_to_keep", "num_logits_to_keep") if n in names), None)
    out = module(input_ids=ids, **given, **({option: keep} if option else {}))
    out.logits = out.logits[:, -keep:]
    return out


@lru_cache(maxsize=2)
def load_network(source: Source, dtype: str, device: str) -> Network:
    """The network of a source, in evaluation mode. dtype: `float32` or `bfloat16`.

    Raises:
        ConfigError: a needed package is missing. BackendError: the weights are incomplete or not understood.
    """
    library = need_transformers()
    import torch
    from safetensors import SafetensorError

    version = tuple(int(x) for x in library.__version__.split(".")[:2])
    options = {
        ("dtype" if version >= (4, 56) else "torch_dtype"): getattr(torch, dtype),
        "output_loading_info": True,
        **({} if source.gguf else {"use_safetensors": True}),
    }
    if source.gguf and hasattr(library, "GgufConfig"):
        # transformers 5.23 would keep some architectures quantised, and fetch a kernel for that.
        options["quantization_config"] = library.GgufConfig(dequantize=True)
    try:
        with _quiet():
            module, info = library.AutoModelForCausalLM.from_pretrained(**source.arguments(), **options)
    except ImportError as error:
        raise _missing(source, error) from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BackendError(f"no causal language model could be loaded from {source.path}: {error}") from None
    absent = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if absent:
        raise BackendError(
            f"{source.path}: {len(absent)} weights are missing or misshapen ({absent[0]}, ...) and would "
            "be random; expected a complete causal language model. If it is one, a newer transformers may read it"
        )
    # Weights that need no gradient would send the cut-out positions through a batched product of the
    # output layer, 2.4 times slower on a CPU (measured); every pass runs in inference mode anyway.
    module = module.eval().requires_grad_(True).to(device)
    config = module.config.get_text_config()
    eos = [module.config.eos_token_id, getattr(module.generation_config, "eos_token_id", None)]
    return Network(
        module=module,
        device=torch.device(device),
        vocabulary=int(config.vocab_size),
        limit=getattr(config, "max_position_embeddings", None),
        caches=_caches(module, torch.device(device)),
        padded=getattr(config, "sliding_window", None) is None,
        stops=frozenset(i for e in eos for i in (e if isinstance(e, list) else [e]) if i is not None),
        pass_cost=_PASS_COST.get(torch.device(device).type, 4096),
    )


def _caches(module: Any, device: torch.device) -> bool:
    """Whether logits after a shared beginning are those of the whole: tried on six tokens.

    Recurrent networks, and some attention networks under old versions of transformers, cannot go on from
    the keys and values they are given; they are asked for whole passes.
    """
    import torch

    with torch.inference_mode():
        ids = torch.arange(1, 7, device=device)[None]
        whole = _forward(module, ids, 1, use_cache=False).logits.float()
        try:
            out = _forward(module, ids[:, :4], 1, past_key_values=EMPTY.cache(1), use_cache=True)
            prefix = prefix_of(out.past_key_values, tuple(range(4)))
            if prefix is None:
                return False
            given = {"past_key_values": prefix.cache(2), "use_cache": True}
            split = _forward(module, ids[:, 4:].expand(2, -1), 1, **given).logits.float()
        except (TypeError, AttributeError, LookupError, ValueError, RuntimeError):
            return False
        off = (split - whole).abs().max() / whole.abs().max().clamp(min=1.0)
        return bool(off < (1e-3 if module.dtype == torch.float32 else 0.1))
