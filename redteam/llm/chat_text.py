"""From conversations to ids: the model's own chat template round messages that must not leave their place.

The template is rendered once for each shape of a conversation with a mark in place of every text. What
stands between the marks is the template's and is tokenised with its special tokens; the texts are tokenised
with no eye for them. So a message that spells the end of a turn is ordinary characters.

Where a template refuses or drops a message, the conversation is put into the words it takes: calls and
results as text, messages of one role in a row as one, a system message before the first user's text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from redteam.core.errors import BackendError, CapabilityError
from redteam.llm.chat_tools import as_dicts, as_text, calls_as_text
from redteam.llm.local_text import Text
from redteam.llm.messages import Message, Tool

_MARK = "MESSAGE{}TEXTGOESHERE"
# Arguments are an object that the template writes as JSON, so their mark is one too.
_MARKS = re.compile(r'\{"MESSAGE(\d+)TEXTGOESHERE": ?0\}|MESSAGE(\d+)TEXTGOESHERE')
_PAD = "\n \t\n"

# Of each message: its role, whether it has a text, and how many calls.
Shape = tuple[tuple[str, bool, int], ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of a whole conversation. spans: of each text, where it begins and ends, and the text as it is sent."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A rendered shape. literals: ids between the texts, one more than there are texts. order: which text
    stands where. leads: spaces the template puts before each text. bare: whether it strips it, left and right.
    """

    literals: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    leads: tuple[str, ...]
    bare: tuple[tuple[bool, bool], ...]
    control: frozenset[int]


class _RefusedError(Exception):
    """The template does not take these messages."""


class ChatText:
    """A tokenizer behind its chat template, for whole conversations.

    native: whether tools may go into the template, where it has a place for them.
    """

    def __init__(self, text: Text, *, native: bool = True) -> None:
        self._text, self._tokenizer = text, text.tokenizer
        # Templates that name the role have a form for results of tools; the others would print what they get.
        self._native = native and "tool" in str(text.tokenizer.chat_template)
        self._control = _control(text)
        self._rendered = lru_cache(maxsize=256)(self._render)

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Encoded:
        """Ids of the conversation up to where the assistant goes on.

        Raises:
            CapabilityError: the template takes no such messages, or a text cannot be told from control tokens.
        """
        given = json.dumps(as_dicts(tools), ensure_ascii=False)
        why = ""
        for form, native in self._forms(messages, tools):
            shape = tuple((m.role, bool(m.content), len(m.calls)) for m in form)
            try:
                rendered = self._rendered(shape, given if native and tools else "")
            except _RefusedError as error:
                why = why or str(error)
                continue
            texts = [t for m in form for t in _texts(m)]
            return self._fill(rendered, texts)
        raise CapabilityError(f"the model's chat template does not take these messages: {why}")

    def _forms(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> Iterator[tuple[list[Message], bool]]:
        """The conversation as it is, then in words that more templates take."""
        if self._native and (tools or any(m.calls or m.role == "tool" for m in messages)):
            yield list(messages), True
            yield calls_as_text(messages), True
        plain = as_text(messages, tools)
        yield plain, False
        yield _merged(plain), False
        yield _folded(plain), False
        yield _merged(_folded(plain)), False

    def _fill(self, rendered: _Rendered, texts: Sequence[str]) -> Encoded:
        ids, spans = list(rendered.literals[0]), []
        rest = zip(rendered.order, rendered.leads, rendered.bare, rendered.literals[1:], strict=True)
        for which, lead, (left, right), literal in rest:
            text = texts[which].lstrip() if left else texts[which]
            text = lead + (text.rstrip() if right else text)
            content = self._text.content_ids(text, rendered.control) if text else []
            spans.append((len(ids), len(ids) + len(content), text))
            ids += [*content, *literal]
        return Encoded(tuple(ids), tuple(spans))

    # ------------------------------------------------------------ the template

    def _render(self, shape: Shape, tools: str) -> _Rendered:
        """The parts of the template round the texts of such a conversation; `_RefusedError` if it loses one."""
        plain = self._apply(shape, tools, lambda i: _MARK.format(i))
        found = list(_MARKS.finditer(plain))
        order = tuple(int(m[1] or m[2]) for m in found)
        count = sum(content + 2 * calls for _, content, calls in shape)
        if sorted(order) != list(range(count)):
            lost = count - len(set(order))
            raise _RefusedError(f"it leaves out {lost} of {count} texts" if lost else "it repeats a text")
        if tools and not all(d["function"]["name"] in plain for d in json.loads(tools)):
            raise _RefusedError("it has no place for tools")
        if self._control.intersection(self._text.literal_ids(tools, follows=True) if tools else ()):
            raise _RefusedError("the tools spell control tokens")
        padded = self._apply(shape, tools, lambda i: _PAD + _MARK.format(i) + _PAD)
        places = [0, *(at for m in found for at in m.span()), len(plain)]
        literals: list[tuple[int, ...]] = []
        leads: list[str] = []
        for begin, end in zip(places[::2], places[1::2], strict=True):
            literal = plain[begin:end]
            last = end == len(plain) and len(leads) == len(found)
            lead = "" if last else literal[len(literal.rstrip(" ")) :]
            literal = literal.removesuffix(lead)
            ids = self._text.literal_ids(literal, follows=begin > 0) if literal else []
            literals.append(tuple(ids))
            leads.append(lead)
        names = self._tokenizer.added_tokens_decoder
        used = {i for ids in literals for i in ids if i in names and self._text.detokenize([i]).strip()}
        bare = tuple(
            (_PAD + _MARK.format(i) not in padded, _MARK.format(i) + _PAD not in padded)
            if _MARK.format(i) in plain and f'{{"{_MARK.format(i)}"' not in plain
            else (False, False)
            for i in order
        )
        return _Rendered(tuple(literals), order, tuple(leads[:-1]), bare, self._control | used)

    def _apply(self, shape: Shape, tools: str, mark: Callable[[int], str]) -> str:
        """The shape through the template, each of its texts as its mark."""
        from jinja2 import TemplateError

        number, messages = 0, []
        for role, content, calls in shape:
            message: dict[str, Any] = {"role": role, "content": mark(number) if content else ""}
            number += content
            functions = []
            for _ in range(calls):
                arguments = {_MARK.format(number + 1): 0}
                functions.append({"name": _MARK.format(number), "arguments": arguments})
                number += 2
            if functions:
                message["tool_calls"] = [{"type": "function", "function": f} for f in functions]
            messages.append(message)
        extra = {"tools": json.loads(tools)} if tools else {}
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **extra
                )
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, BackendError) as error:
            raise _RefusedError(str(error).strip().split("\n")[0][:200]) from None


def _texts(m: Message) -> list[str]:
    """The texts of a message in the order of their marks."""
    content = [m.content] if m.content else []
    return content + [t for c in m.calls for t in (c.name, c.arguments or "{}")]


def _control(text: Text) -> frozenset[int]:
    """Ids that no text may contain. White space that a tokenizer lists among its added tokens forges nothing."""
    tokenizer = text.tokenizer
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(i for i in text.control if i in special or text.detokenize([i]).strip())


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Messages of one role in a row as one."""
    out: list[Message] = []
    for m in messages:
        if out and out[-1].role == m.role:
            out[-1] = replace(m, content="\n\n".join(t for t in (out[-1].content, m.content) if t))
        else:
            out.append(m)
    return out


def _folded(messages: Sequence[Message]) -> list[Message]:
    """Every system message as a user's, for templates that know none."""
    plain = [replace(m, role="user") if m.role == "system" else m for m in messages]
    if len(plain) > 1 and messages[0].role == "system" and plain[1].role == "user":
        joined = "\n\n".join(t for t in (plain[0].content, plain[1].content) if t)
        return [replace(plain[1], content=joined), *plain[2:]]
    return plain
