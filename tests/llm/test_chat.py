"""Conversations: flattened ones, those of tiny:, calls found in text, and plans of batches."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redteam.core.context import Context, Limits
from redteam.core.errors import CapabilityError, ConfigError, DataError, LimitReachedError
from redteam.core.ledger import Ledger
from redteam.llm.chat import Flattened, flatten, open_chat, problem, with_system
from redteam.llm.chat_plan import plan_runs
from redteam.llm.chat_tiny import turns
from redteam.llm.chat_tools import (
    LONGEST,
    as_messages,
    as_text,
    call_text,
    check_tools,
    described,
    parse_calls,
)
from redteam.llm.language import Completion, Sampling
from redteam.llm.messages import ChatModel, Message, Said, Tool, ToolCall
from redteam.llm.options import ModelOptions
from redteam.llm.prefix import shared_length
from redteam.llm.tiny import ASSISTANT, BYTES, END, SYSTEM, USER, frame
from tests.conftest import context
from tests.llm.toy import ToyModel, assistant, system, user

ASK = Tool(
    name="ask_user",
    description="Asks the user.",
    parameters={"type": "object", "properties": {"field": {"type": "string"}}},
)
CALL = ToolCall(id="call_0", name="ask_user", arguments='{"field": "date"}')


def tiny(template: str = "chat", ctx: Context | None = None, **options: object) -> ChatModel:
    return open_chat(ModelOptions(model="tiny:", template=template, **options), ctx or context())  # type: ignore[arg-type]


TALK = [system("Be kind."), user("Hi"), assistant("Hello"), user("What colour is the boat?")]
BAD = {
    "nothing": [],
    "half a pair": [user("a\ud800b")],
    "half a pair in a call": [user("a"), assistant("", ToolCall(id="x", name="y", arguments="\udfff"))],
    "no role": [Message(role="judge", content="x")],  # type: ignore[arg-type]
}


# ---------------------------------------------------------------- flattened


class Says(ToyModel):
    """Answers every prompt alike and keeps the prompts."""

    def __init__(self, text: str, finish: str = "length") -> None:
        super().__init__()
        self.text, self.finish = text, finish

    def generate(self, prompts, sampling):
        self.asked += prompts
        return [Completion(text=self.text, finish=self.finish, tokens_in=3, tokens_out=4) for _ in prompts]


def test_a_flattened_conversation_is_one_prompt_and_ends_before_the_next_turn():
    model = Says(" I am fine.\nYes\nUser: and you?\nAssistant: no")
    chat = Flattened(model)
    assert isinstance(chat, ChatModel)
    (said,) = chat.chat([TALK], Sampling())
    assert model.asked == [
        "System: Be kind.\nUser: Hi\nAssistant: Hello\nUser: What colour is the boat?\nAssistant:"
    ]
    assert said == Said(text="I am fine.\nYes", finish="stop", tokens_in=3, tokens_out=4)
    for text in ("plain", "User: at the very start is no turn", "a\nUsers: x"):
        assert Flattened(Says(text)).chat([TALK], Sampling())[0].text == text
    assert Flattened(Says("x", "length")).chat([TALK], Sampling())[0].finish == "length"
    assert Flattened(Says("x\nTool: y", "error")).chat([TALK], Sampling())[0].finish == "error"
    assert chat.fingerprint() == {**model.fingerprint(), "conversations": "flattened"}
    with pytest.raises(CapabilityError, match="takes no tools"):
        chat.chat([TALK], Sampling(), [ASK])


def test_calls_and_results_are_written_out():
    text = flatten([user("a"), assistant("b", CALL), Message(role="tool", content="c", call_id="call_0")])
    assert text == f"User: a\nAssistant: b\n{call_text(CALL)}\nTool: c\nAssistant:"


@pytest.mark.parametrize("template", ["raw", "chat"])
@pytest.mark.parametrize("name", BAD)
def test_what_no_model_can_read_is_an_error_of_its_own_conversation(template, name):
    model = tiny(template)
    bad, fine = model.chat([BAD[name], [user("Hi")]], Sampling(max_tokens=2))
    assert bad.finish == "error" and "expected" in bad.message and problem(BAD[name]) == bad.message
    assert fine.finish in ("stop", "length") and not fine.message
    json.dumps(bad.message).encode()


@pytest.mark.parametrize("template", ["raw", "chat"])
def test_control_characters_and_megabytes_do_no_harm(template):
    model = tiny(template)
    texts = ["\0\x1b[2J\x07", "<|im_end|>\u202e\u2028", "", "\r\n" * 9]
    for said in model.chat([[user(t)] for t in texts], Sampling(max_tokens=4)):
        assert said.finish in ("stop", "length")
    (long,) = model.chat([[user("x" * 3_000_000)]], Sampling(max_tokens=4))
    assert "window of 512" in long.message and "30000" in long.message
    assert long.finish == ("error" if template == "raw" else long.finish)


# ---------------------------------------------------------------- tiny:


def test_turns_generalise_the_frame_of_one_question():
    assert turns([user("Hi")]) == frame("Hi") and turns([system("S"), user("Hi")]) == frame("Hi", "S")
    assert turns([user("a"), assistant("b"), user("c")]) == [
        USER, 97, ASSISTANT, 98, END, USER, 99, ASSISTANT,
    ]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), min_size=1))
def test_no_message_forges_a_turn_of_tiny(messages):
    ids = turns([Message(role=r, content=t) for r, t in messages])
    named = {"system": [SYSTEM], "user": [USER], "assistant": [ASSISTANT, END]}
    assert [i for i in ids if i >= BYTES] == [i for r, _ in messages for i in named[r]] + [ASSISTANT]
    assert bytes(i for i in ids if i < BYTES).decode() == "".join(t for _, t in messages)


def test_tiny_answers_in_turns_and_one_question_as_before():
    from redteam.llm.tiny import open_tiny

    options = ModelOptions(model="tiny:", template="chat", system="Be kind.")
    sampling = Sampling(max_tokens=20)
    questions = ["What colour is the boat?", "Repeat this exactly: fish"]
    old = open_tiny(options, context()).generate(questions, sampling)
    ctx = context()
    new = open_chat(options, ctx).chat([[user(q)] for q in questions], sampling)
    assert [(a.text, a.finish, a.tokens_in, a.tokens_out) for a in old] == [
        (s.text, s.finish, s.tokens_in, s.tokens_out) for s in new
    ]
    assert [s.text for s in tiny().chat([[system("Be kind."), user(q)] for q in questions], sampling)] == [
        s.text for s in new
    ]
    spent = ctx.ledger.spent("target")
    assert spent.queries == 2 and spent.tokens_out == sum(s.tokens_out for s in new)
    assert with_system(TALK, "other") == TALK  # its own system message stands
    talk = [user("Repeat this exactly: fish"), assistant("fish"), user("Repeat this exactly: a garden")]
    assert tiny().chat([talk], sampling)[0].text == "a garden"


def test_tiny_sees_the_end_of_a_long_conversation_and_says_so():
    model = tiny()
    talk = [system("Secret. " * 100), user("Repeat this exactly: boat")]
    long, short = model.chat([talk, talk[1:]], Sampling(max_tokens=12))
    assert long.tokens_in == 500 and "exceed the model's window of 512" in long.message and not short.message
    assert long.finish in ("stop", "length") and long.tokens_out > 0
    most = model.chat([talk], Sampling(max_tokens=10_000))[0]
    assert most.tokens_in == 256 and most.finish in ("stop", "length")


def test_tiny_takes_no_tools_and_no_wrong_sampling():
    with pytest.raises(CapabilityError, match="takes no tools"):
        tiny().chat([TALK], Sampling(), [ASK])
    (said,) = tiny().chat([[user("x"), Message(role="tool", content="y")]], Sampling())
    assert said.finish == "error" and "no turns for tools" in said.message
    with pytest.raises(ConfigError, match="max_tokens"):
        tiny().chat([TALK], Sampling(max_tokens=0))
    with pytest.raises(LimitReachedError):
        tiny(ctx=context(limits=Limits(wall_s=0.0))).chat([TALK], Sampling())
    assert tiny().chat([], Sampling()) == []
    assert tiny().fingerprint()["conversations"] == "native"
    assert tiny("raw").fingerprint()["conversations"] == "flattened"
    with pytest.raises(ConfigError, match="raw prompt"):
        tiny("raw", system="x")


def test_what_is_asked_is_booked_under_its_role():
    ledger = Ledger()
    model = open_chat(ModelOptions(model="tiny:", template="raw"), context(ledger=ledger), "minimiser")
    model.chat([TALK, BAD["nothing"]], Sampling(max_tokens=2))
    assert ledger.spent("minimiser").queries == 1 and ledger.spent("target").queries == 0


# ---------------------------------------------------------------- tools as text


def test_calls_come_back_from_their_text():
    text = f"Let me ask.\n{call_text(CALL)}\n{call_text(ToolCall(id='', name='other', arguments='{}'))} ok"
    rest, calls = parse_calls(text, [ASK], first=3)
    assert rest == "Let me ask.\n\n ok"
    assert calls == (
        ToolCall(id="call_3", name="ask_user", arguments='{"field": "date"}'),
        ToolCall(id="call_4", name="other", arguments="{}"),
    )
    for bare in (
        '{"name": "ask_user", "arguments": {"field": "date"}}',
        '[{"name": "ask_user", "parameters": {"field": "date"}}]',
        '```json\n{"name": "ask_user", "arguments": {"field": "date"}}\n```',
        '{"type": "function", "function": {"name": "ask_user", "arguments": "{\\"field\\": \\"date\\"}"}}',
        ' <tool_call>{"name": "ask_user", "arguments": {"field": "date"}}',
    ):
        assert parse_calls(bare, [ASK]) == ("", (CALL,)), bare


@pytest.mark.parametrize(
    "text",
    [
        "", "plain", "<tool_call>", "<tool_call></tool_call>", "<tool_call>{}</tool_call>", "{", "[]", "{}",
        "<tool_call>{'name': 'ask_user'}</tool_call>", '{"name": "unknown", "arguments": {}}',
        '{"name": 3, "arguments": {}}', '{"name": "ask_user"}', '{"name": "ask_user", "arguments": 3}',
        '[{"name": "ask_user", "arguments": {}}, 3]', '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        "</tool_call><tool_call>", "</tool_call>", '{"name": "", "arguments": {}}', "```json\n```", "```",
    ],
)  # fmt: skip
def test_text_that_is_no_call_stays_text(text):
    assert parse_calls(text, [ASK]) == (text, ())


def test_arguments_with_half_a_pair_are_written_with_escapes():
    _, (call,) = parse_calls('<tool_call>{"name": "a", "arguments": {"x": "\\ud800"}}</tool_call>', [])
    assert call.arguments == '{"x": "\\ud800"}' and call.arguments.encode()


@pytest.mark.parametrize(
    "piece",
    ["<tool_call>", "<tool_call>{", '<tool_call>{"a":"', "[", '{"a":', "</tool_call>", "<tool_call>[[", "1", "```\n"],
)  # fmt: skip
@pytest.mark.parametrize("size", [LONGEST, 3_000_000])
def test_megabytes_of_half_calls_are_text_at_once(piece, size):
    text = piece * (size // len(piece))
    start = time.process_time()
    assert parse_calls(text, [ASK]) == (text, ())
    assert time.process_time() - start < 2


def test_more_calls_than_anybody_makes_stay_text():
    one = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    rest, calls = parse_calls(one * 100, [])
    assert len(calls) == 64 and rest == one * 36
    assert parse_calls("[" + ",".join(['{"name": "ask_user", "arguments": {}}'] * 65) + "]", [ASK])[1] == ()


@given(st.text(), st.lists(st.sampled_from(["<tool_call>", "</tool_call>", '{"name": "a"', "}", "[", '"'])))
def test_no_text_breaks_the_parser(text, pieces):
    whole = text.join(pieces)
    rest, calls = parse_calls(whole, [ASK])
    assert calls or rest == whole


def test_tools_are_described_in_the_system_message():
    talk = [system("Be kind."), user("Hi"), assistant("", CALL), Message(role="tool", content="no")]
    plain = as_text(talk, [ASK])
    assert [m.role for m in plain] == ["system", "user", "assistant", "user"]
    assert plain[0].content.startswith("Be kind.\n\n") and plain[0].content.endswith(described([ASK]))
    assert '"ask_user"' in described([ASK]) and "<tool_call>" in described([ASK])
    assert plain[2] == assistant(call_text(CALL)) and "no" in plain[3].content
    assert [m.role for m in as_text([user("x")], [ASK])] == ["system", "user"]
    assert as_text([user("x")], []) == [user("x")] and as_text([], []) == []


def test_messages_in_the_openai_format():
    broken = ToolCall(id="b", name="f", arguments='{"a": ')
    talk = [
        user("x"),
        assistant("", CALL),
        assistant("y", broken),
        Message(role="tool", content="z", call_id="b"),
    ]
    assert as_messages(talk) == [
        {"role": "user", "content": "x"},
        {
            "role": "assistant", "content": None,
            "tool_calls": [
                {"id": "call_0", "type": "function", "function": {"name": "ask_user", "arguments": CALL.arguments}}
            ],
        },
        {
            "role": "assistant", "content": "y",
            "tool_calls": [
                {"id": "b", "type": "function", "function": {"name": "f", "arguments": '{"invalid": "{\\"a\\": "}'}}
            ],
        },
        {"role": "tool", "content": "z", "tool_call_id": "b"},
    ]  # fmt: skip


@pytest.mark.parametrize("parameters", [{"x": float("nan")}, {"x": object()}, {"x": "\ud800"}])
def test_tools_that_are_no_json_are_refused(parameters):
    with pytest.raises(DataError, match="plain JSON"):
        check_tools([Tool(name="f", description="", parameters=parameters)])


# ---------------------------------------------------------------- plans


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), min_size=0, max_size=20),
    st.integers(1, 6), st.integers(0, 9), st.booleans(), st.booleans(),
)  # fmt: skip
def test_a_plan_holds_each_row_once_and_shares_only_what_is_shared(rows, size, cost, caching, equal):
    batches = plan_runs(rows, size=size, pass_cost=cost, caching=caching, equal=equal)
    assert sorted(i for b in batches for run in b for i in run.rows) == list(range(len(rows)))
    for batch in batches:
        mine = [i for run in batch for i in run.rows]
        assert 1 <= len(mine) <= size
        assert not equal or len({len(rows[i]) for i in mine}) == 1
        for run in batch:
            assert all(run.shared < len(rows[i]) for i in run.rows) and (caching or not run.shared)
            assert all(shared_length(rows[a], rows[b]) >= run.shared for a, b in pairwise(run.rows))


def test_groups_that_share_a_beginning_share_its_computation():
    rows = [tuple([g] * 400 + [10 + k] * 60) for k in range(6) for g in range(8)]
    batches = plan_runs(rows, size=16, pass_cost=128, caching=True, equal=False)
    assert len(batches) == 3 and all(run.shared == 400 for b in batches for run in b)
    assert all(len({rows[i][0] for i in run.rows}) == 1 for b in batches for run in b)
    short = [tuple([g] * 10 + [10 + k] * 60) for k in range(6) for g in range(8)]
    assert all(
        run.shared == 0 and len(run.rows) == 16
        for b in plan_runs(short, size=16, pass_cost=128, caching=True, equal=False)
        for run in b
    )
