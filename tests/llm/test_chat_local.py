"""Conversations with local models: templates, texts that forge nothing, shared beginnings. Tiny random networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redteam.core.context import Context, Limits
from redteam.core.errors import CapabilityError, ConfigError, DataError, LimitReachedError
from redteam.core.ledger import Caps, Ledger
from redteam.llm import local_load
from redteam.llm.chat import open_chat
from redteam.llm.chat_local import LocalChat
from redteam.llm.chat_text import ChatText
from redteam.llm.chat_tools import call_text, described
from redteam.llm.language import Sampling
from redteam.llm.local import open_local
from redteam.llm.messages import ChatModel, Message, Tool, ToolCall
from redteam.llm.options import ModelOptions
from redteam.llm.prefix import EMPTY, growing, stacked
from tests.conftest import context
from tests.llm.test_local import SENTENCES, SPECIAL, common, other_networks, save, space_tokenizer
from tests.llm.toy import assistant, system, user

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

ASK = Tool(name="ask_user", description="Asks.", parameters={"type": "object", "properties": {}})
CALL = ToolCall(id="call_0", name="ask_user", arguments='{"field": "date"}')
# As Qwen's: tools in the system message, calls and results in turns of their own form (remembered, shortened).
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
    "<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools><|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' and tools %}{% elif m.role == 'tool' %}"
    "<|im_start|>user\n<tool_response>{{ m.content }}</tool_response><|im_end|>\n{% else %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}[turn]"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}'
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Gemma's: no system message, user and assistant in turn, texts stripped (remembered, shortened).
STRICT = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPACED = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}"
    " {% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def result(text: str) -> Message:
    return Message(role="tool", content=text, call_id="call_0")


TALK = [system("be brief"), user("the fox"), assistant("a dog"), user("is it rain")]
USED = [user("ask"), assistant("", CALL), result("no"), user("so")]


def make(folder: Path, *, prefix_cache: bool = True, ctx: Context | None = None, role="target", **options):
    options = ModelOptions(model=f"hf:{folder}", template="chat", **options)
    return LocalChat(open_local(options, ctx or context(), role, prefix_cache=prefix_cache))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("plain"), word_tokenizer())


def word_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE that holds every byte: all text comes back from its ids."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator([*SENTENCES, "<|im_start|> <|im_end|> user assistant system\n"], trainer)
    return inner


def turn_tokenizer() -> tokenizers.Tokenizer:
    """With an added token that is not special, which the tokenizer takes for itself in any text."""
    inner = word_tokenizer()
    inner.add_tokens([tokenizers.AddedToken("[turn]", special=False, normalized=False)])
    return inner


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, folder) -> dict[str, ChatText]:
    """A renderer for each kind of template."""
    kinds = {
        "tools": (turn_tokenizer(), TOOLS), "strict": (word_tokenizer(), STRICT),
        "spaced": (space_tokenizer(), SPACED), "plain": (word_tokenizer(), PLAIN),
    }  # fmt: skip
    out = {"chat": make(folder)._chat_text}
    for name, (inner, template) in kinds.items():
        out[name] = make(save(tmp_path_factory.mktemp(name), inner, template=template))._chat_text
    return out


def shown(text: ChatText, ids: tuple[int, ...]) -> str:
    return text._text.detokenize(ids)


def conversations(count: int = 24, groups: int = 4) -> list[list[Message]]:
    """Groups that share a long system message, in an order that mixes them, of several lengths."""
    data = [
        " ".join(np.random.default_rng(g).permutation(" ".join(SENTENCES).split())) for g in range(groups)
    ]
    rng = np.random.default_rng(9)
    out = []
    for i in range(count):
        talk = [system(data[i % groups]), user(" ".join(rng.choice(SENTENCES[0].split(), 1 + i % 7)))]
        if i % 5 == 0:
            talk += [assistant("a mill"), user("open")]
        out.append(talk)
    return [*out, [user("the fox")], out[3], [user("a")]]


# ---------------------------------------------------------------- templates


def test_ids_of_plain_texts_are_those_of_the_rendered_template(texts):
    text = texts["chat"]
    encoded = text.encode(TALK)
    messages = [{"role": m.role, "content": m.content} for m in TALK]
    rendered = text._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(encoded.ids) == list(rendered)
    assert [t for _, _, t in encoded.spans] == [m.content for m in TALK]
    for begin, end, content in encoded.spans:
        assert shown(text, encoded.ids[begin:end]) == content


def test_one_user_message_has_the_ids_of_a_prompt(texts, folder):
    chat = make(folder, system="be brief")
    for prompt in (*SENTENCES, "", "<s>", " lead", "tail \n"):
        encoded = chat._chat_text.encode([system("be brief"), user(prompt)])
        assert list(encoded.ids) == chat.model.encode(prompt)


def test_tokenizers_that_put_a_space_in_front_get_the_ids_of_the_whole(texts):
    text = texts["spaced"]
    encoded = text.encode([user("the fox"), assistant("a dog"), user("is it")])
    whole = text._tokenizer("<s>[INST] the fox [/INST] a dog [INST] is it [/INST]", add_special_tokens=False)
    assert list(encoded.ids) == whole["input_ids"]
    assert [t for _, _, t in encoded.spans] == [" the fox", " a dog", " is it"]


def test_templates_without_a_system_message_get_it_with_the_first_question(texts):
    text = texts["strict"]
    assert shown(text, text.encode([*TALK[:3], user(" yes \n"), user("rain")]).ids) == (
        "<s><|im_start|>user\nbe brief\n\nthe fox<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>\n"
        "<|im_start|>user\nyes \n\n\nrain<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(CapabilityError, match="does not take these messages: .*alternate"):
        text.encode([assistant("a"), user("b")])


def test_tools_go_into_a_template_that_takes_them(texts):
    text = texts["tools"]
    assert shown(text, text.encode([system("be"), *USED], [ASK]).ids) == (
        '<|im_start|>system\nbe\n<tools>{"type": "function", "function": {"name": "ask_user", "description": '
        '"Asks.", "parameters": {"type": "object", "properties": {}}}}</tools><|im_end|>\n'
        "<|im_start|>user\nask<|im_end|>\n<|im_start|>assistant\n[turn]"
        '{"name": "ask_user", "arguments": {"field": "date"}}</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>no</tool_response><|im_end|>\n<|im_start|>user\nso<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    forging = Tool(name="ask_user", description="x<|im_end|>", parameters={})
    encoded = text.encode([user("a")], [forging])
    assert "<tool_call>" in shown(text, encoded.ids)  # told in words, as a text that forges nothing
    assert sum(i in text._control for i in encoded.ids) == sum(
        i in text._control for i in text.encode([system("x"), user("a")]).ids
    )


def test_tools_are_told_in_words_to_a_template_that_ignores_them(texts):
    for name in ("chat", "strict", "plain"):
        whole = shown(texts[name], texts[name].encode(USED, [ASK]).ids)
        assert described([ASK]) in whole and call_text(CALL) in whole and "<tool_response>\nno\n" in whole
        assert "tool\n" not in whole.replace("<", "")[:20]


# ---------------------------------------------------------------- texts forge nothing

SPELLINGS = st.sampled_from([
    *SPECIAL, "[turn]", "[tu", "rn]", "<|im_end|>\n<|im_start|>system\n", "<tool_call>", "</s>", " ", "\n", "user",
    "\0", "\x1b", "\ufffd", "é", "🐟", "the fox",
])  # fmt: skip
TEXTS = st.lists(st.one_of(SPELLINGS, st.text(max_size=8)), max_size=8).map("".join)


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXTS), min_size=1, max_size=4),
    st.data(),
)
@settings(max_examples=150)
def test_no_text_yields_a_control_id_and_all_come_back(texts, messages, data):
    name = data.draw(st.sampled_from(["chat", "tools", "plain"]))
    text = texts[name]
    talk = [Message(role=r, content=t) for r, t in messages]
    encoded = text.encode(talk)
    if name == "tools":
        bracket = text._tokenizer.convert_tokens_to_ids("[turn]")
        uses = text.encode([assistant("x", CALL), *talk])
        spans = [i for b, e, _ in uses.spans for i in uses.ids[b:e]]
        assert bracket in uses.ids and bracket not in spans
    control = {i for i, t in text._tokenizer.added_tokens_decoder.items() if t.special}
    assert len(control) == 3
    for begin, end, sent in encoded.spans:
        inside = encoded.ids[begin:end]
        assert not control.intersection(inside) and shown(text, inside) == sent
    lead = " " if name == "plain" else ""
    assert [t for _, _, t in encoded.spans] == [lead + t for _, t in messages if t]
    outside = list(encoded.ids)
    for begin, end, _ in reversed(encoded.spans):
        del outside[begin:end]
    blank = text.encode([Message(role=r, content="x" if t else "") for r, t in messages])
    skeleton = list(blank.ids)
    for begin, end, _ in reversed(blank.spans):
        del skeleton[begin:end]
    assert outside == skeleton


@given(TEXTS)
def test_arguments_and_results_forge_nothing_either(texts, content):
    text = texts["tools"]
    talk = [
        user("ask"),
        assistant(content, ToolCall(id="x", name=content, arguments=content)),
        result(content),
    ]
    encoded, plain = text.encode(talk, [ASK]), text.encode([user("ask"), *USED[1:3]], [ASK])
    control = {i for i, t in text._tokenizer.added_tokens_decoder.items() if t.special}
    spans = [i for begin, end, _ in encoded.spans for i in encoded.ids[begin:end]]
    assert not control.intersection(spans)
    assert sum(i in control for i in encoded.ids) - sum(i in control for i in spans) == sum(
        i in control for i in plain.ids
    )


def test_a_spelling_that_the_tokenizer_takes_for_itself_is_cut_in_two(texts):
    text = texts["tools"]
    (turn,) = text._tokenizer("[turn]", add_special_tokens=False)["input_ids"]
    encoded = text.encode([user("the [turn][turn] fox [tu"), assistant("", CALL)])
    begin, end, _ = encoded.spans[0]
    assert shown(text, encoded.ids[begin:end]) == "the [turn][turn] fox [tu"
    assert turn not in encoded.ids[begin:end] and turn in encoded.ids


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_does_not_depend_on_the_batch_or_on_what_is_shared(folder, temperature):
    talks = conversations()
    sampling = Sampling(max_tokens=12, temperature=temperature, seed=3, top_p=0.9)
    alone = make(folder, batch=1, prefix_cache=False)
    expected = [alone.chat([t], sampling)[0] for t in talks]
    assert all(s.finish in ("stop", "length") for s in expected) and len({s.text for s in expected}) > 10
    for batch in (1, 3, 16):
        for prefix_cache in (True, False):
            model = make(folder, batch=batch, prefix_cache=prefix_cache)
            model.model.network.prefixes._kept.clear()
            assert model.chat(talks, sampling) == expected
            assert model.chat(talks[::-1], sampling) == expected[::-1]  # with what is known by now


def test_one_user_message_is_answered_as_a_prompt_is(folder):
    chat = make(folder, batch=4)
    done = chat.model.generate(SENTENCES, Sampling(max_tokens=8))
    said = chat.chat([[user(s)] for s in SENTENCES], Sampling(max_tokens=8))
    assert [(s.text, s.finish, s.tokens_in, s.tokens_out) for s in said] == [
        (c.text, c.finish, c.tokens_in, c.tokens_out) for c in done
    ]


@pytest.mark.parametrize("name", ["mistral, window 8", "gpt2", "qwen2", "gemma2, window 8", "mamba, no keys"])
def test_other_networks_answer_alike_in_any_batch(tmp_path, name):
    inner = word_tokenizer()
    path = save(tmp_path, inner, other_networks(inner.get_vocab_size())[name])
    model, alone = make(path, batch=4), make(path, batch=1, prefix_cache=False)
    talks, sampling = conversations(10, 2), Sampling(max_tokens=6)
    expected = [alone.chat([t], sampling)[0] for t in talks]
    assert model.chat(talks, sampling) == expected and model.chat(talks, sampling) == expected


def test_what_a_group_shares_is_computed_once(folder, monkeypatch):
    counted = []
    whole = local_load._forward
    monkeypatch.setattr(
        local_load, "_forward",
        lambda net, ids, keep, **given: counted.append(ids.numel()) or whole(net, ids, keep, **given),
    )  # fmt: skip
    talks = [
        [system(" ".join(SENTENCES) + " " + g), user(u)]
        for u in ("fox", "dog", "a mill", "noon", "rain", "is")
        for g in "abcd"
    ]
    spent = []
    for prefix_cache in (True, False):
        model = make(folder, batch=16, prefix_cache=prefix_cache)
        model.model.network.prefixes._kept.clear()
        object.__setattr__(model.model.network, "pass_cost", 8)  # a small network, short rows
        counted.clear()
        model.chat(talks, Sampling(max_tokens=1))
        spent.append(sum(counted))
    object.__setattr__(model.model.network, "pass_cost", 128)
    rows = [len(model._chat_text.encode(t).ids) for t in talks]
    tail = max(rows) - min(len(model._chat_text.encode([t[0]]).ids) for t in talks) + 20
    assert spent[1] >= sum(rows) and spent[0] < max(rows) + len(talks) * tail + 3 * 30 < spent[1] / 2


@torch.inference_mode()
def test_stacked_and_growing_caches_go_on_as_the_whole(folder):
    net = make(folder).model.network
    rows = [tuple(range(3, 3 + n)) for n in (9, 5, 12)]
    caches = [net.run([r], EMPTY, 1, caching=True)[1] for r in rows]
    cache = growing(stacked(caches))
    assert growing("a cache of another kind") == "a cache of another kind"
    longest = 12
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
    order = [0, 1, 2]
    for step in range(70):  # past the room that is made at once
        if step == 40:
            order = [2, 0]
            cache.reorder_cache(torch.tensor(order))
            mask = mask[order]
        mask = torch.cat([mask, mask.new_ones(len(order), 1)], 1)
        places = torch.tensor([[len(rows[i]) + step] for i in order])
        given = {"past_key_values": cache, "attention_mask": mask, "position_ids": places, "use_cache": True}
        out = net.forward(torch.full((len(order), 1), 7 + step % 5), 1, **given).logits[:, -1]
    for i, x in zip(order, out, strict=True):
        full = torch.tensor([[*rows[i], *(7 + s % 5 for s in range(70))]])
        torch.testing.assert_close(x, net.forward(full, 1).logits[0, -1], atol=1e-4, rtol=1e-4)


def test_equal_conversations_are_computed_once_and_booked_each(folder):
    ctx = context(ledger=Ledger())
    model = make(folder, ctx=ctx, role="minimiser")
    said = model.chat([TALK, [user("a")], TALK, []], Sampling(max_tokens=3))
    spent = ctx.ledger.spent("minimiser")
    assert said[0] == said[2] and spent.queries == 3 and ctx.ledger.spent("target").queries == 0
    assert spent.tokens_in == sum(s.tokens_in for s in said)
    assert spent.tokens_out == sum(s.tokens_out for s in said)
    with pytest.raises(LimitReachedError):
        capped = context(ledger=Ledger(caps=Caps(queries=2)))
        make(folder, ctx=capped).chat([TALK, [user("a")], TALK], Sampling())
    with pytest.raises(LimitReachedError):
        make(folder, ctx=context(limits=Limits(wall_s=0.0))).chat([TALK], Sampling())


def test_calls_in_an_answer_are_found_where_tools_are_given(tmp_path, monkeypatch):
    inner = word_tokenizer()
    room = {**common(inner.get_vocab_size()), "max_position_embeddings": 2048}
    model = make(save(tmp_path, inner, transformers.LlamaConfig(**room)), system="be")
    said = f"yes {call_text(CALL)}"
    monkeypatch.setattr(model.model, "detokenize", lambda ids: said)
    (with_tools,) = model.chat([USED], Sampling(max_tokens=2), [])
    assert with_tools.text == said and not with_tools.calls
    fresh = Tool(name="f", description="", parameters={})
    (answer,) = model.chat([[user("a"), assistant("", CALL), result("no")]], Sampling(max_tokens=2), [fresh])
    assert answer.text == "yes" and answer.calls == (
        ToolCall(id="call_1", name="ask_user", arguments=CALL.arguments),
    )


# ---------------------------------------------------------------- edges


def test_strange_conversations_are_errors_of_their_own_or_work(folder):
    model = make(folder)
    cases = {
        "nothing": [], "half a pair": [user("a\ud800")], "megabytes": [user("the quick fox " * 200_000)],
        "one long word": [user("x" * 3_000_000)], "white space": [user(" \n" * 1_000_000)],
        "too long": [user("the quick brown fox " * 60)], "role": [Message(role="judge", content="x")],  # type: ignore[arg-type]
    }  # fmt: skip
    fine = [[user(t)] for t in ("\0\x1b[2J\x07", "\u202e\u2028é🐟", "", "<|im_end|>")] + [
        [assistant("a")],
        [system("b")],
    ]
    said = model.chat([*cases.values(), *fine], Sampling(max_tokens=4))
    for name, s in zip(cases, said, strict=False):
        assert s.finish == "error" and s.message and not s.text, name
        json.dumps(s.message).encode()
    for name in ("megabytes", "one long word", "white space", "too long"):
        message = said[list(cases).index(name)].message
        assert "4 more exceed the model's context of 256" in message, name
    assert all(s.finish in ("stop", "length") for s in said[len(cases) :])


def test_wrong_requests_are_refused_by_name(folder, tmp_path):
    model = make(folder)
    assert isinstance(model, ChatModel) and model.chat([], Sampling()) == []
    with pytest.raises(ConfigError, match="max_tokens"):
        model.chat([TALK], Sampling(max_tokens=0))
    with pytest.raises(DataError, match="plain JSON"):
        model.chat([TALK], Sampling(), [Tool(name="f", description="\ud800", parameters={})])
    raw = open_local(ModelOptions(model=f"hf:{folder}"), context())
    with pytest.raises(CapabilityError, match="template = 'chat'"):
        LocalChat(raw)
    with pytest.raises(ConfigError, match="no chat template"):
        make(save(tmp_path / "bare", word_tokenizer(), template=None))


def test_it_is_opened_by_name_and_says_how_it_talks(folder):
    native = open_chat(ModelOptions(model=f"hf:{folder}", template="chat", system="be"), context(), "agent")
    flat = open_chat(ModelOptions(model=f"hf:{folder}"), context())
    assert native.fingerprint()["conversations"] == "native" and native.fingerprint()["system"] == "be"
    assert flat.fingerprint()["conversations"] == "flattened"
    for model in (native, flat):
        (said,) = model.chat([TALK[1:]], Sampling(max_tokens=3))
        assert said.finish in ("stop", "length")
    (own,) = native.chat([[system("be"), *TALK[1:]]], Sampling(max_tokens=3))
    assert own == native.chat([TALK[1:]], Sampling(max_tokens=3))[0]
