"""Conversations with a local model (`gguf:`, `hf:`) in the turns of its own chat template.

Conversations that begin alike, such as those of one user's data, are put next to each other, and what they
have in common is computed once. The answers are those each conversation would get alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from redteam.core.errors import CapabilityError
from redteam.llm.chat import InTurns, problem, with_system
from redteam.llm.chat_plan import Run, plan_runs
from redteam.llm.chat_text import ChatText
from redteam.llm.chat_tools import as_dicts, check_tools, parse_calls
from redteam.llm.language import Sampling
from redteam.llm.local import LocalModel
from redteam.llm.messages import Message, Said, Tool
from redteam.llm.prefix import EMPTY, Ids, stacked

if TYPE_CHECKING:
    from redteam.llm.local_decode import Answer


class LocalChat(InTurns[LocalModel]):
    """A local model as a `redteam.llm.messages.ChatModel`. model: opened with template = chat."""

    def chat(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, tools: Sequence[Tool] = ()
    ) -> list[Said]:
        """The next message of each conversation; equal conversations get equal answers.

        Tools go into the template where it has a place for them, else into the system message.

        Raises:
            ConfigError: sampling settings that make no sense. DataError: a tool that is no JSON.
            LimitReachedError: a cap or the time.
        """
        from redteam.llm.local_decode import Answer, checked, chooser

        most = checked(sampling).max_tokens
        check_tools(tools)
        system = self.model.options.system
        talks = [with_system(c, system) for c in conversations]
        names = [_name(c, tools) for c in talks]
        by_name = dict(zip(names, talks, strict=True))
        rows, found = self._rows(by_name, tools, most)
        times, distinct, net = Counter(names), list(rows), self.model.network
        batches = plan_runs(
            [rows[n] for n in distinct], size=self.model.options.batch, pass_cost=net.pass_cost,
            caching=self.model.caching, equal=not net.padded,
        )  # fmt: skip
        answers = {n: Answer(chooser(sampling, n)) for n in distinct}
        for batch in batches:
            mine = [distinct[k] for run in batch for k in run.rows]
            with self.model.reserved(
                {n: len(rows[n]) for n in mine}, times, most, [answers[n] for n in mine]
            ):
                self._decode(batch, [rows[n] for n in distinct], [answers[n] for n in distinct], most)
        for name, answer in answers.items():
            text = self.model.detokenize(answer.ids)
            calls: tuple[Any, ...] = ()
            if tools:
                text, calls = parse_calls(text, tools, first=sum(len(m.calls) for m in by_name[name]))
            found[name] = Said(
                text=text, finish=answer.finish or "error", calls=calls, tokens_in=len(rows[name]),
                tokens_out=answer.spent,
            )  # fmt: skip
        return [found[n] for n in names]

    # ------------------------------------------------------------ inside

    @cached_property
    def _chat_text(self) -> ChatText:
        return ChatText(self.model.text)

    @cached_property
    def _longest_token(self) -> int:
        """Bytes of the longest token, at most: a text of n bytes has at least n divided by it."""
        tokens = self.model.text.tokenizer.get_vocab()
        return max(4, *(len(t.encode("utf-8", "replace")) for t in tokens))

    def _rows(
        self, talks: Mapping[str, Sequence[Message]], tools: Sequence[Tool], room: int
    ) -> tuple[dict[str, Ids], dict[str, Said]]:
        """Ids of each distinct conversation, or why it cannot be gone on with by `room` tokens."""
        rows: dict[str, Ids] = {}
        wrong: dict[str, str] = {}
        limit = self.model.network.limit
        for name, talk in talks.items():
            if message := problem(talk):
                wrong[name] = message
                continue
            # Megabytes are not tokenised to learn that they are too long.
            least = sum(len(m.content.encode()) for m in talk) // self._longest_token
            if limit is not None and least > limit:
                wrong[name] = _too_long(f"at least {least}", room, limit)
                continue
            try:
                ids = self._chat_text.encode(talk, tools).ids
            except CapabilityError as error:
                wrong[name] = str(error)
                continue
            if limit is not None and len(ids) + room > limit:
                wrong[name] = _too_long(str(len(ids)), room, limit)
            else:
                rows[name] = ids
        return rows, {n: Said(text="", finish="error", message=m) for n, m in wrong.items()}

    def _decode(
        self, batch: Sequence[Run], rows: Sequence[Ids], answers: Sequence[Answer], most: int
    ) -> None:
        """Let the answers of one batch grow to their ends: run by run to the first token, then all together."""
        import torch

        from redteam.llm.local_decode import finish

        net, stops = self.model.network, self.model.text.stops
        last, caches = [], []
        with torch.inference_mode():
            for run in batch:
                fed = [rows[k] for k in run.rows]
                prefix = EMPTY
                if run.shared:
                    common = fed[0][: run.shared]
                    prefix = net.extend(net.prefixes.longest(common), common)
                logits, cache = net.run(fed, prefix, 1, caching=net.caches)
                last += [answers[k].take(x[-1], stops, most) for k, x in zip(run.rows, logits, strict=True)]
                caches.append(cache)
            order = [k for run in batch for k in run.rows]
            finish(
                net, [rows[k] for k in order], [answers[k] for k in order], last,
                stacked(caches) if net.caches else None, stops=stops, most=most,
            )  # fmt: skip


def _name(talk: Sequence[Message], tools: Sequence[Tool]) -> str:
    """What a conversation is, as text: equal ones are computed once, and samples are drawn by it."""
    messages = [[m.role, m.content, [[c.name, c.arguments] for c in m.calls]] for m in talk]
    # Escapes keep halves of surrogate pairs, which are refused later, from ending the digest of a name.
    return json.dumps([messages, as_dicts(tools)])


def _too_long(tokens: str, room: int, limit: int) -> str:
    return f"{tokens} tokens and {room} more exceed the model's context of {limit} tokens"
