"""Conversations: the labels are the assistant's answers and their ends of turn, nothing else."""

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lorica.data.config import DataConfig
from lorica.data.conversation import parse_conversation
from lorica.data.fields import BadRow
from lorica.data.render import render
from lorica.data.source import Row
from lorica.errors import DataError
from tests.data.templates import GEMMA, INDENTED, STYLES, chatml

TALK = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "That makes 6, of course."},
]
SYSTEM = [{"role": "system", "content": "Be brief."}]


class Tokenizer:
    """As much of a tokenizer as rendering asks for."""

    def __init__(self, template):
        self.chat_template = template
        self.special_tokens_map = {"bos_token": "<s>", "eos_token": "</s>"}


def rendered(template, messages, name="messages", **settings):
    rows = [Row({name: messages}, "a.jsonl:1")]
    config = DataConfig(path="a.jsonl", **settings)
    return render(rows, config, Tokenizer(template))


@pytest.mark.parametrize("system", [[], SYSTEM], ids=["plain", "system"])
@pytest.mark.parametrize("name", STYLES)
def test_the_mask_is_the_answers_and_their_ends_of_turn(name, system):
    source, end = STYLES[name]
    if name == "gemma":  # refuses system texts
        system = []
    (row,) = rendered(source, [*system, *TALK]).rows
    learned = [s.text.strip() for s in row.spans if s.learned]
    context = "".join(s.text for s in row.spans if not s.learned)
    answers = [m["content"] for m in TALK if m["role"] == "assistant"]
    space = " " if name == "llama 2" else ""
    assert learned == [f"{answer}{space}{end}" for answer in answers]
    assert all(m["content"] in context for m in (*system, *TALK) if m["role"] != "assistant")
    assert (row.ending, row.reference.strip()) == (end, answers[-1])
    assert row.special


@pytest.mark.parametrize("name", [name for name in STYLES if name != "parts"])
def test_the_prompt_is_what_generation_gets(name):
    """Compared with jinja2 alone, in this process."""
    source, _ = STYLES[name]
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    prompt = plain.from_string(source).render(
        messages=TALK[:3], add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    (row,) = rendered(source, TALK).rows
    assert row.prompt == prompt


def test_a_generation_prompt_that_no_answer_follows_is_refused_with_the_fix():
    with pytest.raises(DataError, match="not the one that it writes") as error:
        rendered(INDENTED, TALK)
    assert "completion_only: false" in error.value.fix
    (row,) = rendered(INDENTED, TALK, completion_only=False).rows
    assert row.spans[0].learned


def test_generation_blocks_are_obeyed():
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A:"
        "{% generation %}{{ m.content }}<end>{% endgeneration %}\n"
        "{% else %}U:{{ m.content }}\n{% endif %}{% endfor %}"
    )
    (row,) = rendered(source, TALK).rows
    assert [s.text for s in row.spans if s.learned] == [
        "It is 4.<end>",
        "That makes 6, of course.<end>",
    ]
    assert row.ending == "<end>"
    assert "\ue0f0" not in row.text


def test_a_template_without_a_mask_is_refused_with_the_fix():
    thinks = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    )
    with pytest.raises(DataError, match="not the one that it writes") as error:
        rendered(thinks, TALK)
    assert "data.completion_only: false" in str(error.value)
    (row,) = rendered(thinks, TALK, completion_only=False).rows
    assert [s.learned for s in row.spans] == [True]

    numbers = "{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="once others follow") as error:
        rendered(numbers, TALK)
    assert "data.split_turns: true" in error.value.fix


def test_a_learned_prompt_keeps_the_reference_answer():
    (row,) = rendered(chatml(), TALK, completion_only=False).rows
    assert all(s.learned for s in row.spans)
    assert row.reference == TALK[3]["content"]


def test_refused_roles_are_collected():
    rows = [Row({"messages": TALK[1:]}, "a:1"), Row({"messages": TALK}, "a:2")]
    rows.append(Row({"messages": [TALK[0], TALK[0], TALK[1]]}, "a:3"))
    with pytest.raises(DataError, match="2 of 3 rows") as error:
        render(rows, DataConfig(path="a.jsonl"), Tokenizer(GEMMA))
    assert "a:1" in str(error.value) and "roles must alternate" in str(error.value)


def test_a_missing_template_is_an_error_with_the_fix():
    with pytest.raises(DataError, match="has no chat template") as error:
        rendered(None, TALK)
    assert "chat_template.jinja" in error.value.fix


def test_several_templates_give_the_default():
    (row,) = rendered({"default": "{{ messages[0].content }}", "tool_use": "no"}, TALK[:1]).rows
    assert row.text == TALK[0]["content"]


def test_messages_after_the_last_answer_are_left_out_and_counted():
    rendering = rendered(chatml(), TALK[:3])
    assert rendering.notices == [
        "1 conversations go on after their last answer; what follows it is left out: a.jsonl:1"
    ]
    assert "3 + 3" not in rendering.rows[0].text


def test_sharegpt_is_the_same_conversation():
    names = {"user": "human", "assistant": "gpt"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in TALK]
    source = chatml()
    ours = rendered(source, turns, name="conversations")
    assert ours.kind == "sharegpt"
    assert ours.rows[0].spans == rendered(source, TALK).rows[0].spans


def test_tool_calls_reach_the_template():
    call = '{"name": "add", "arguments": {"a": 1}}'
    turns = [
        {"from": "human", "value": "add"},
        {"from": "function_call", "value": call},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "3."},
    ]
    fields = {"conversations": turns, "tools": '[{"name": "add"}]', "system": "Be kind."}
    source = chatml()
    rows = [Row(fields, "a:1")]
    (row,) = render(rows, DataConfig(path="a"), Tokenizer(source)).rows
    assert "# Tools" in row.text and "Be kind." in row.text
    first, last = [s.text for s in row.spans if s.learned]
    assert first == f"\n<tool_call>\n{call}\n</tool_call><|im_end|>".lstrip("\n")
    assert last == "3.<|im_end|>"


def test_a_call_without_content_has_an_empty_one():
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    row = {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}
    (message,) = parse_conversation(row).messages
    assert message["content"] == "" and message["tool_calls"] == [call]


@pytest.mark.parametrize(
    "messages, why",
    [
        ([], "messages is empty"),
        ("hello", "messages is str"),
        (["hello"], "message 1 is str"),
        ([{"content": "a"}], "message 1 has no role"),
        ([{"role": "user"}], "message 1 has no content"),
        ([{"role": "user", "content": 3}], "message 1 content is int"),
        ([{"from": "martian", "value": "a"}], "is from 'martian'; known are human"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "not text"),
    ],
)
def test_an_invalid_message_is_named(messages, why):
    with pytest.raises(BadRow, match=why):
        parse_conversation({"messages": messages})


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (message,) = parse_conversation({"messages": [{"role": "user", "content": parts}]}).messages
    assert message["content"] == "ab"
