"""Hold adversarial strings to what their cell planned: which strings, how many queries, how long a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redteam.core.errors import ArtifactError, BudgetExceededError, CapabilityError
from redteam.data.nouns import TextDataset
from redteam.threats.strings.artifact import Strings

_ROUNDING = 1e-9  # sums of dollars


def enforce(
    artifact: Strings,
    config: Mapping[str, Any],
    access: Sequence[str],
    dataset: TextDataset,
    tokenize: Callable[[str], Sequence[int]] | None = None,
) -> None:
    """Hold an artifact to what its cell planned: the scorer takes nothing on the attack's word.

    config: the attack's resolved config; its `max_queries` (of one string), `request` (the text before
    the adversarial string, `{target}` standing for the target) and `length` (tokens of the adversarial
    string) bind, where it has them. access: not needed, as an artifact does not show what was touched.
    dataset: the planned strings; a target may be the beginning of one. tokenize: the target's; without
    it, lengths are not checked.

    Raises:
        BudgetExceededError: other strings, too many queries, another request, or too long a string.
        ArtifactError: the artifact contradicts itself.
    """
    _check_strings(artifact, dataset)
    _check_search(artifact)
    cap, most = config.get("max_queries"), int(artifact.queries.max())
    if cap is not None and most > cap:
        raise BudgetExceededError(f"the search of one string took {most} queries; its budget is {cap}")
    claimed = (artifact.notes.get("caps") or {}).get("queries")
    if cap is not None and claimed is not None and claimed != cap:
        raise BudgetExceededError(f"the cell planned max_queries {cap}, the artifact says {claimed}")
    template = str(config.get("request") or "")
    requests = [template.replace("{target}", target) for target in artifact.targets]
    _check_requests(artifact, requests)
    length = config.get("length")
    if length is not None and tokenize is not None:
        _check_lengths(artifact, requests, int(length), tokenize)


def _check_strings(artifact: Strings, dataset: TextDataset) -> None:
    if artifact.ids != dataset.ids:
        raise BudgetExceededError(
            f"expected the {len(dataset)} strings of '{dataset.name}' in their order, got {len(artifact.ids)} "
            "others; an attack may leave none out"
        )
    for name, target, text in zip(artifact.ids, artifact.targets, dataset.texts, strict=True):
        if not target.strip() or not text.startswith(target):
            raise BudgetExceededError(
                f"the target of '{name}' is not the string of '{dataset.name}', nor the beginning of it: "
                f"{target!r}"
            )


def _check_search(artifact: Strings) -> None:
    for unit in ("queries", "tokens", "usd"):
        spent, at = getattr(artifact, unit), getattr(artifact, f"{unit}_at")
        if (spent < 0).any() or (at > spent + _ROUNDING).any():
            raise ArtifactError(
                f"{unit}_at: expected at most the {unit} that the search spent, and those >= 0"
            )
        if (artifact.found != (at >= 0)).any():
            raise ArtifactError(f"{unit}_at: expected -1 exactly for the strings that were not found")


def _check_requests(artifact: Strings, requests: Sequence[str]) -> None:
    for name, prompt, request in zip(artifact.ids, artifact.prompts, requests, strict=True):
        if not prompt.startswith(request):
            raise BudgetExceededError(
                f"the prompt of '{name}' does not begin with the planned request {request!r}"
            )
    if plain(artifact) != requests:
        raise BudgetExceededError("the artifact's plain prompts are not the planned requests")


def _check_lengths(
    artifact: Strings, requests: Sequence[str], length: int, tokenize: Callable[[str], Sequence[int]]
) -> None:
    for name, prompt, request in zip(artifact.ids, artifact.prompts, requests, strict=True):
        added = prompt.removeprefix(request)
        try:
            tokens = _tokens_added(request, added, tokenize)
        except CapabilityError as error:
            raise BudgetExceededError(
                f"the cell planned strings of {length} tokens, and the target cannot count them: {error}"
            ) from error
        if tokens > length:
            raise BudgetExceededError(
                f"the string for '{name}' is {tokens} tokens long as the target reads it; its budget is {length}"
            )


def _tokens_added(request: str, added: str, tokenize: Callable[[str], Sequence[int]]) -> int:
    """Tokens of `added`, by itself or after `request`, whichever is fewer: it may merge with what is before."""
    if not added:
        return 0
    alone = len(tokenize(added))
    return min(alone, len(tokenize(request + added)) - len(tokenize(request))) if request else alone


def plain(artifact: Strings) -> list[str]:
    """The prompt of each string without anything adversarial: the request alone, empty if there is none."""
    return [str(text) for text in artifact.notes.get("plain") or ("",) * len(artifact.ids)]
