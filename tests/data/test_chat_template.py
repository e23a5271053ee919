"""Conversations: the mask covers what the assistant says and its end of turn, nothing else."""

import pytest

from lorica.data.config import DataConfig
from lorica.data.conversation import parse_conversation
from lorica.data.fields import BadRow
from lorica.data.render import render
from lorica.data.source import Row
from lorica.errors import DataError

TALK = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "That makes 6, of course."},
]
SYSTEM = [{"role": "system", "content": "Be brief."}]

# What each template of ../shared writes behind an answer, with bos <s> and eos </s>.
ENDINGS = {
    "alpaca": "</s>",
    "amberchat": "",
    "chatml": "<|im_end|>",
    "chatqa": "",
    "falcon-instruct": "",
    "gemma-it": "<end_of_turn>",
    "granite-3.0-instruct": "<|end_of_text|>",
    "llama-2-chat": "</s>",
    "llama-3-instruct": "<|eot_id|>",
    "mistral-instruct": "</s>",
    "openchat-3.5": "<|end_of_turn|>",
    "phi-3": "<|end|>",
    "phi-3-small": "<|end|>",
    "qwen2.5-instruct": "<|im_end|>",
    "saiga": "</s>",
    "solar-instruct": "",
    "vicuna": "</s>",
    "zephyr": "</s>",
}


class Tokenizer:
    """As much of a tokenizer as rendering asks for."""

    def __init__(self, template):
        self.chat_template = template
        self.special_tokens_map = {"bos_token": "<s>", "eos_token": "</s>"}


def source_of(shared, name):
    """The template as its repository says to load it: indents and line breaks taken out.

    Those with `{%-` trim themselves, and are taken as they are.
    """
    text = (shared / f"data/formats/chat_templates/{name}.jinja").read_text()
    return text if "{%-" in text else text.replace("    ", "").replace("\n", "")


def talk(template, messages, name="messages", **settings):
    rows = [Row({name: messages}, "a.jsonl:1")]
    config = DataConfig(path="a.jsonl", **settings)
    return render(rows, config, Tokenizer(template))


def test_the_list_is_complete(shared):
    files = (shared / "data/formats/chat_templates").glob("*.jinja")
    assert sorted(ENDINGS) == sorted(path.stem for path in files)


@pytest.mark.parametrize("system", [[], SYSTEM], ids=["plain", "system"])
@pytest.mark.parametrize("name", ENDINGS)
def test_the_mask_is_the_answers_and_their_ends(shared, name, system):
    rendering = talk(source_of(shared, name), [*system, *TALK])
    (row,) = rendering.rows
    said = [s.text for s in row.spans if s.learned]
    read = "".join(s.text for s in row.spans if not s.learned)
    answers = [m["content"] for m in TALK if m["role"] == "assistant"]
    end = ENDINGS[name]
    assert row.ending == end
    assert [text.strip() for text in said] == [
        f"{a} {end}" if name == "llama-2-chat" else f"{a}{end}" for a in answers
    ]
    assert all(m["content"] in read for m in (*system, *TALK) if m["role"] != "assistant")
    assert row.reference.strip() == answers[-1]
    assert row.special and row.text.count("<s>") <= 1 + (name in ("llama-2-chat",)) + 9 * (
        name == "saiga"
    )


@pytest.mark.parametrize("name", ENDINGS)
def test_the_prompt_is_what_generation_is_given(shared, name):
    """Checked against jinja alone, without our environment's bounds."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    source = source_of(shared, name)
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    given = plain.from_string(source).render(
        messages=TALK[:3], add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    (row,) = talk(source, TALK).rows
    assert row.prompt == given


# Taken with their indents and line breaks, the other templates end the prompt for generation
# with a line break that they do not write in front of an answer. There is no mask then.
MASKED_AS_THEY_STAND = {"granite-3.0-instruct", "llama-2-chat", "mistral-instruct"} | {
    "qwen2.5-instruct"
}


@pytest.mark.parametrize("name", ENDINGS)
def test_raw_files_are_masked_or_refused_with_the_fix(shared, name):
    text = (shared / f"data/formats/chat_templates/{name}.jinja").read_text()
    if name in MASKED_AS_THEY_STAND:
        (row,) = talk(text, TALK).rows
        said = [s.text for s in row.spans if s.learned]
        assert [TALK[1]["content"] in said[0], TALK[3]["content"] in said[1]] == [True, True]
        return
    with pytest.raises(DataError, match="not the one that it writes") as error:
        talk(text, TALK)
    assert "completion_only: false" in error.value.fix
    (row,) = talk(text, TALK, completion_only=False).rows
    assert row.spans[0].learned


def test_generation_blocks_are_obeyed():
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A:"
        "{% generation %}{{ m.content }}<end>{% endgeneration %}\n"
        "{% else %}U:{{ m.content }}\n{% endif %}{% endfor %}"
    )
    (row,) = talk(source, TALK).rows
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
        talk(thinks, TALK)
    assert "data.completion_only: false" in str(error.value)
    (row,) = talk(thinks, TALK, completion_only=False).rows
    assert [s.learned for s in row.spans] == [True]

    numbers = "{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="once others follow") as error:
        talk(numbers, TALK)
    assert "data.split_turns: true" in error.value.fix


def test_everything_learned_keeps_the_answers_apart(shared):
    (row,) = talk(source_of(shared, "chatml"), TALK, completion_only=False).rows
    assert all(s.learned for s in row.spans)
    assert row.reference == TALK[3]["content"]


def test_refused_roles_are_collected(shared):
    rows = [Row({"messages": TALK[1:]}, "a:1"), Row({"messages": TALK}, "a:2")]
    rows.append(Row({"messages": [TALK[0], TALK[0], TALK[1]]}, "a:3"))
    with pytest.raises(DataError, match="2 of 3 rows") as error:
        render(rows, DataConfig(path="a.jsonl"), Tokenizer(source_of(shared, "chatml")))
    assert "a:1" in str(error.value) and "roles must alternate" in str(error.value)


def test_no_template_says_what_to_do():
    with pytest.raises(DataError, match="has no chat template") as error:
        talk(None, TALK)
    assert "chat_template.jinja" in error.value.fix


def test_several_templates_give_the_default():
    (row,) = talk({"default": "{{ messages[0].content }}", "tool_use": "no"}, TALK[:1]).rows
    assert row.text == TALK[0]["content"]


def test_turns_behind_the_last_answer_are_left_out_and_counted(shared):
    rendering = talk(source_of(shared, "chatml"), TALK[:3])
    assert rendering.notices == [
        "1 conversations go on after their last answer; what follows it is left out: a.jsonl:1"
    ]
    assert "3 + 3" not in rendering.rows[0].text


def test_sharegpt_is_the_same_conversation(shared):
    names = {"user": "human", "assistant": "gpt"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in TALK]
    source = source_of(shared, "chatml")
    ours = talk(source, turns, name="conversations")
    assert ours.kind == "sharegpt"
    assert ours.rows[0].spans == talk(source, TALK).rows[0].spans


def test_tool_calls_reach_the_template(shared):
    call = '{"name": "add", "arguments": {"a": 1}}'
    turns = [
        {"from": "human", "value": "add"},
        {"from": "function_call", "value": call},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "3."},
    ]
    fields = {"conversations": turns, "tools": '[{"name": "add"}]', "system": "Be kind."}
    source = (shared / "data/formats/chat_templates/qwen2.5-instruct.jinja").read_text()
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
def test_bad_messages_say_which(messages, why):
    with pytest.raises(BadRow, match=why):
        parse_conversation({"messages": messages})


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (message,) = parse_conversation({"messages": [{"role": "user", "content": parts}]}).messages
    assert message["content"] == "ab"
