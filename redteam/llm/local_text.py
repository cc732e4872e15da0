"""From prompts to ids and back: the template round a user's text, and text that must not leave it.

A prompt is sent as ids of the template's head, of the user's text and of the template's tail. The user's
text is tokenised with no eye for special tokens, so that `<|im_end|>` in it is ten ordinary characters
and cannot forge a turn of the conversation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from redteam.core.errors import CapabilityError, ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np

    from redteam.llm.language import Template

# Control tokens that end an answer, by name: what their makers call the end of a turn or of a document.
_ENDS = (
    "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<eos>", "</s>",
)  # fmt: skip
_MARK, _ANSWER = "USERTEXTGOESHERE", "ANSWERGOESHERE"


@dataclass(frozen=True, eq=False)
class Text:
    """A tokenizer behind a template.

    head, tail: ids before and after the user's text. lead, answer_lead: spaces that the template puts right
    before the user's text, and before an answer; they belong to its first token. control: ids that no
    user's text may contain. stops: ids that end an answer. faithful: whether ids of a plain prompt are
    those of the rendered template tokenised whole.
    """

    tokenizer: Any
    template: Template
    head: tuple[int, ...]
    tail: tuple[int, ...]
    lead: str
    answer_lead: str
    control: frozenset[int]
    stops: frozenset[int]
    faithful: bool

    def tokenize(self, text: str) -> list[int]:
        """Ids of bare text; text that looks like a special token is ordinary text.

        Raises:
            CapabilityError: this tokenizer cannot tell them apart.
        """
        return self._user_ids(text, follows=False)

    def encode(self, prompt: str) -> list[int]:
        """Ids of the whole prompt as the network gets them. Raises like `tokenize`.

        Nothing at all cannot be continued: it is the token that ends a text, after which one begins.
        """
        if self.template == "raw":
            return [*self.head, *self.tokenize(prompt)] or sorted(self.stops)[:1]
        user = self._user_ids(self.lead + prompt, follows=True)
        return [*self.head, *user, *self.tail]

    def target_ids(self, target: str) -> list[int]:
        """Ids of `target` at the beginning of an answer.

        On the raw template a space is put before it if it does not begin with white space: text goes on
        with a new word. So it is on chat templates that put one before an answer, such as Llama 2's.
        Whoever compares completions with the target strips leading white space first.

        Raises:
            DataError: an empty target. Also raises like `tokenize`.
        """
        if not target:
            raise DataError("expected a target of at least one character, got an empty string")
        lead = "" if target[0].isspace() else self.answer_lead
        return self._user_ids(lead + target, follows=True)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out, nothing tidied."""
        return _decode(self.tokenizer, [list(ids)])[0] if len(ids) else ""

    def literal_ids(self, text: str, *, follows: bool) -> list[int]:
        """Ids of a part of the template, special tokens and all. follows: it goes on after other text."""
        return (_continued if follows else _ids)(self.tokenizer, text)

    def content_ids(self, text: str, control: frozenset[int]) -> list[int]:
        """Ids of a message's text between parts of a template, none of them in `control`.

        Where a tokenizer takes a spelling for a control token all the same, the spelling is cut in two.

        Raises:
            CapabilityError: this tokenizer cannot take it as ordinary text even so.
        """
        ids = _continued(self.tokenizer, text, split_special_tokens=True)
        unknown = self.tokenizer.unk_token_id
        forged = {i: self.detokenize([i]).strip() for i in control.intersection(ids)}
        names = sorted({n for i, n in forged.items() if n and n in text}, key=len, reverse=True)
        if not names and not (forged.keys() - {unknown}):
            return ids  # an unknown character forges nothing
        parts, rest = [], text
        for at in sorted({m.start() + 1 for n in names for m in re.finditer(f"(?={re.escape(n)})", text)}):
            parts.append(text[len(text) - len(rest) : at])
            rest = text[at:]
        cut = [_continued(self.tokenizer, part, split_special_tokens=True) for part in (*parts, rest) if part]
        ids = [i for part in cut for i in part]
        for i in control.intersection(ids):
            name = self.detokenize([i]).strip()
            if i != unknown or name in text:
                raise CapabilityError(
                    f"the text holds the control token {name!r}, which this tokenizer cannot take as ordinary "
                    "text: it would forge a part of the template"
                )
        return ids

    @cached_property
    def vocabulary(self) -> np.ndarray:
        """(V,) int64 ids that stand for printable text by themselves, and for which that text stands."""
        import numpy as np

        ids = [i for i in range(len(self.tokenizer)) if i not in self.control]
        texts = _decode(self.tokenizer, [[i] for i in ids])
        good = [
            (i, t) for i, t in zip(ids, texts, strict=True) if t and t.isprintable() and "\ufffd" not in t
        ]
        options = {"add_special_tokens": False, "split_special_tokens": True}
        back = self.tokenizer([t for _, t in good], **options)["input_ids"] if good else []
        return np.array([i for (i, _), b in zip(good, back, strict=True) if list(b) == [i]], np.int64)

    def _user_ids(self, text: str, *, follows: bool) -> list[int]:
        """Ids of a text that is no part of the template. follows: it goes on after other text."""
        encode = _continued if follows else _ids
        ids = encode(self.tokenizer, text, split_special_tokens=True)
        for i in self.control.intersection(ids):
            name = self.detokenize([i])
            if i != self.tokenizer.unk_token_id or name in text:  # an unknown character forges nothing
                raise CapabilityError(
                    f"the text holds the control token {name!r}, which this tokenizer cannot take as ordinary "
                    "text: it would forge a part of the template"
                )
        return ids


def open_text(
    tokenizer: Any, template: Template, system: str | None, *, stops: frozenset[int], size: int
) -> Text:
    """Put a template round a tokenizer.

    stops: ids the network itself calls the end. size: how many ids the network knows; some tokenizers
    bring more, such as a padding token, and no text may hold those.

    Raises:
        ConfigError: a chat template is asked for and there is none, or it has no place for a system message.
        DataError: the template needs tokens that the network does not know.
    """
    if template == "raw" and system is not None:
        raise ConfigError("a system message needs template = 'chat'; with 'raw', put it into the prompt")
    added = tokenizer.added_tokens_decoder
    control = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    control |= set(range(size, len(tokenizer)))
    if template == "raw":
        head, tail, lead, answer_lead, faithful = _first_ids(tokenizer), [], "", " ", True
    else:
        before, after, answer_lead = _render(tokenizer, system)
        lead = before[len(before.rstrip(" ")) :]
        head = _ids(tokenizer, before.rstrip(" "))
        tail = _continued(tokenizer, after)
        control |= {i for i in (*head, *tail) if i in added}
        probe = "A plain question"
        user = _continued(tokenizer, lead + probe)
        faithful = [*head, *user, *tail] == _ids(tokenizer, before + probe + after)
    if unknown := [i for i in (*head, *tail) if i >= size]:
        raise DataError(
            f"the template needs token {unknown[0]}, and the network knows ids below {size}: this tokenizer "
            "and these weights do not belong together"
        )
    ends = {i for i in control if _decode(tokenizer, [[i]])[0] in _ENDS}
    ends |= set(stops) | {i for i in [tokenizer.eos_token_id] if i is not None}
    ends |= set(next(([i] for i in tail if i in control), []))
    return Text(
        tokenizer,
        template,
        tuple(head),
        tuple(tail),
        lead,
        answer_lead,
        frozenset(control),
        frozenset(ends),
        faithful,
    )


def _render(tokenizer: Any, system: str | None) -> tuple[str, str, str]:
    """The chat template's text before and after the user's, and the spaces it puts before an answer."""
    if not tokenizer.chat_template:
        raise ConfigError("the model brings no chat template; use template = 'raw'")
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": _MARK})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        messages.append({"role": "assistant", "content": _ANSWER})
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError as error:
        raise ConfigError(f"the model's chat template refuses these messages: {error}") from None
    parts = text.split(_MARK)
    if len(parts) != 2:
        raise ConfigError(
            f"expected the user's text once in the model's chat template, found it {len(parts) - 1} times"
        )
    if system is not None and system.strip() not in text:
        raise ConfigError("the model's chat template ignores the system message; leave system out")
    gap = whole[len(text) : whole.find(_ANSWER)] if whole.startswith(text) and _ANSWER in whole else ""
    return parts[0], parts[1], gap if not gap.strip(" ") else ""


def _ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"])


def _decode(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return [tokenizer.decode(row, **options) for row in rows]


def _first_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before bare text by default, such as a beginning-of-sequence token."""
    bare, full = _ids(tokenizer, "x"), list(tokenizer("x")["input_ids"])
    return next((full[:i] for i in range(len(full)) if full[i : i + len(bare)] == bare), [])


def _continued(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Ids of text that follows other text.

    Tokenizers of the SentencePiece kind put a space before whatever they are given; behind a line break
    they do not, so there the ids are taken from.
    """
    ids = _ids(tokenizer, text, **options)
    if not ids or not str(tokenizer.convert_ids_to_tokens(ids[:1])[0]).startswith("\u2581"):
        return ids
    anchor, whole = _ids(tokenizer, "\n"), _ids(tokenizer, "\n" + text, **options)
    return whole[len(anchor) :] if whole[: len(anchor)] == anchor else ids
