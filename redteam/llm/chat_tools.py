"""Tools and calls as text: how they are told to a model, and how its calls are found in what it wrote.

The format is that of Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`
(remembered). What a model writes is its own affair: text that is no call stays text, and no text, however
long or broken, costs more than a few passes over it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from redteam.core.errors import DataError
from redteam.core.hashing import canonical_json
from redteam.llm.messages import Message, Tool, ToolCall

MOST_CALLS = 64  # of one answer; more are text
LONGEST = 2**18  # characters of an answer that are searched for calls
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_HOW = (
    "You may call these functions. Each line describes one:\n<tools>\n{tools}\n</tools>\n"
    "To call one, write its name and arguments as JSON, in this form and with nothing behind it:\n"
    '<tool_call>\n{{"name": "NAME", "arguments": {{"PARAMETER": "VALUE"}}}}\n</tool_call>'
)


def as_dicts(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools in the OpenAI format."""
    return [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": dict(t.parameters)},
        }
        for t in tools
    ]


def as_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in the OpenAI format.

    Servers parse the arguments of earlier calls and fail on broken ones; those are sent as {"invalid": TEXT}.
    """
    out: list[dict[str, Any]] = []
    for m in messages:
        out.append({"role": m.role, "content": m.content})
        if m.role == "tool":
            out[-1]["tool_call_id"] = m.call_id
        if m.calls:
            out[-1]["content"] = m.content or None
            out[-1]["tool_calls"] = [
                {
                    "id": c.id,
                    "type": "function",
                    "function": {"name": c.name, "arguments": _valid(c.arguments)},
                }
                for c in m.calls
            ]
    return out


def _valid(arguments: str) -> str:
    if isinstance(_load(arguments), dict):
        return arguments
    return json.dumps({"invalid": arguments}) if arguments.strip() else "{}"


def check_tools(tools: Sequence[Tool]) -> None:
    """Refuse tools that cannot be sent.

    Raises:
        DataError: one that is no JSON, or holds half a surrogate pair.
    """
    for tool in tools:
        try:
            canonical_json(as_dicts([tool])).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"tool {tool.name!r}: expected a name, a description and a JSON schema as plain JSON ({error})"
            ) from None


def described(tools: Sequence[Tool]) -> str:
    """Tools and how to call them, for a model whose template has no place for them."""
    return _HOW.format(tools="\n".join(json.dumps(d, ensure_ascii=False) for d in as_dicts(tools)))


def call_text(call: ToolCall) -> str:
    """A call as a model writes it. Its arguments stand as they are, broken or not."""
    name = json.dumps(call.name, ensure_ascii=False)
    return f'{_OPEN}\n{{"name": {name}, "arguments": {call.arguments}}}\n{_CLOSE}'


def as_text(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The same conversation for a template without tools: they and calls and results become text of messages."""
    out = [_without_calls(m) for m in messages]
    if tools:
        first = out[0].content if out and out[0].role == "system" else ""
        system = Message(role="system", content="\n\n".join(t for t in (first, described(tools)) if t))
        out = [system, *(out[1:] if out and out[0].role == "system" else out)]
    return [
        Message(role="user", content=f"<tool_response>\n{m.content}\n</tool_response>")
        if m.role == "tool"
        else m
        for m in out
    ]


def calls_as_text(messages: Sequence[Message]) -> list[Message]:
    """The same messages with every call written into the assistant's text."""
    return [_without_calls(m) for m in messages]


def _without_calls(m: Message) -> Message:
    if not m.calls:
        return m
    return replace(m, content="\n".join(t for t in (m.content, *map(call_text, m.calls)) if t), calls=())


# ---------------------------------------------------------------- what a model wrote


def parse_calls(text: str, tools: Sequence[Tool], *, first: int = 0) -> tuple[str, tuple[ToolCall, ...]]:
    """The text without its calls, and the calls. Never raises; a call that is none stays in the text.

    Blocks of `<tool_call>` may name any function. A bare JSON object or list, which may be data, is a call
    only if it names a tool that was offered. first: the number that the first call's id gets.
    """
    searched = text[:LONGEST]
    calls: list[ToolCall] = []
    kept: list[str] = []
    end = 0
    for start, stop in _blocks(searched):
        found = _read(_load(searched[start + len(_OPEN) : stop].removesuffix(_CLOSE)), first + len(calls))
        if found and len(calls) + len(found) <= MOST_CALLS:
            calls += found
            kept.append(text[end:start])
            end = stop
    if calls:
        return "".join([*kept, text[end:]]).strip(), tuple(calls)
    if len(text) <= LONGEST:
        bare = _read(_load(_unfenced(text)), first)
        if bare and len(bare) <= MOST_CALLS and all(c.name in {t.name for t in tools} for c in bare):
            return "", tuple(bare)
    return text, ()


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Where blocks begin and end: at their close, else at the next opening or the end of the text."""
    marks = list(re.finditer(r"</?tool_call>", text))
    for i, mark in enumerate(marks):
        if mark[0] != _OPEN:
            continue
        after = marks[i + 1] if i + 1 < len(marks) else None
        if after is None:
            yield mark.start(), len(text)
        else:
            yield mark.start(), after.end() if after[0] == _CLOSE else after.start()


def _unfenced(text: str) -> str:
    """JSON out of a Markdown fence, if it stands in one."""
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```") and "\n" in bare:
        return bare[bare.index("\n") : -3]
    return bare


def _load(text: str) -> Any:
    text = text.strip()
    if text[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read(value: Any, number: int) -> list[ToolCall]:
    """Calls out of decoded JSON: an object, or a list of nothing but such objects."""
    items = value if isinstance(value, list) else [value]
    calls: list[ToolCall] = []
    for item in items:
        if (
            isinstance(item, dict)
            and item.get("type") == "function"
            and isinstance(item.get("function"), dict)
        ):
            item = item["function"]
        if not isinstance(item, dict):
            return []
        name = item.get("name")
        arguments = written(item["arguments"] if "arguments" in item else item.get("parameters"))
        if not isinstance(name, str) or not _plain(name) or arguments is None:
            return []
        calls.append(ToolCall(id=f"call_{number + len(calls)}", name=name, arguments=arguments))
    return calls


def written(arguments: Any) -> str | None:
    """Arguments as JSON text: an object is written out, a string stands as it is; else None."""
    if isinstance(arguments, str):
        return arguments if not arguments or _plain(arguments) else None
    if not isinstance(arguments, Mapping):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False)
        return text if _plain(text) else json.dumps(arguments)
    except (RecursionError, TypeError, ValueError):
        return None


def _plain(text: str) -> bool:
    """Whether a text is one: not empty, and without halves of surrogate pairs."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False
