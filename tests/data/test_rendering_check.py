"""The text of any template has all that the row says, and only answers are labels."""

import json

import pytest

from lorica.data.config import DataConfig
from lorica.data.render import render
from lorica.data.source import Row
from lorica.errors import DataError
from tests.data.templates import (
    CALLS,
    DEEPSEEK,
    GEMMA,
    GLM,
    LLAMA3,
    MISTRAL,
    PARTS,
    PARTS_ASKED,
    PHI3,
    QWEN3,
    blocks,
    chatml,
)

TALK = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "That makes 6."},
]
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWERS = [TALK[1]["content"], TALK[3]["content"]]


class Tokenizer:
    """The part of a tokenizer that rendering uses."""

    def __init__(self, template):
        self.chat_template = template
        self.special_tokens_map = {"bos_token": "<s>", "eos_token": "</s>"}


def rendered(template, fields, path="a.jsonl", **settings):
    fields = {"messages": fields} if isinstance(fields, list) else fields
    rows = [Row(fields, "a.jsonl:1")]
    return render(rows, DataConfig(path=path, **settings), Tokenizer(template))


def learned(rendering):
    return [s.text for row in rendering.rows for s in row.spans if s.learned]


def refused(template, fields, **settings):
    with pytest.raises(DataError) as error:
        rendered(template, fields, **settings)
    assert error.value.fix
    return str(error.value)


# name: (template, end of turn, text of its notices)
TEMPLATES = {
    "chatml": (chatml(), "<|im_end|>", ""),
    "llama 3": (LLAMA3, "<|eot_id|>", ""),
    "gemma": (GEMMA, "<end_of_turn>", ""),
    "mistral": (MISTRAL, "</s>", ""),
    "phi 3": (PHI3, "<|end|>", ""),
    "deepseek": (DEEPSEEK, "<|eos|>", ""),
    "parts": (PARTS, "<|im_end|>", ""),
    "parts of questions": (PARTS_ASKED, "</s>", ""),
    "glm": (GLM, "", "writes no end of turn after answers that other messages follow: in 1 rows"),
    "chatml without generation prompt": (
        chatml(opens=False),
        "<|im_end|>",
        "has no generation prompt, so the header",
    ),
    "blocks": (blocks("{{ m.content }}<|end|>", "\n"), "<|end|>", ""),
    "blocks without the end": (
        blocks("{{ m.content }}", "<|end|>\n"),
        "<|end|>",
        "leave out the end of turn ('<|end|>')",
    ),
    "blocks with the next header": (blocks("{{ m.content }}<|end|>\n<|user|>\n"), "<|end|>", ""),
    "blocks with the header of what follows": (
        blocks("{{ m.content }}<|end|>{% if not loop.last %}<|user|>{% endif %}"),
        "<|end|>",
        "",
    ),
    "blocks with a header": (
        blocks("Assistant: {{ m.content }}<|end|>"),
        "<|end|>",
        "writes 'Assistant:' before",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_answers_and_their_ends_of_turn_are_learned(name):
    template, end, notice = TEMPLATES[name]
    rendering = rendered(template, TALK)
    texts = learned(rendering)
    if name == "chatml without generation prompt":  # generation has to write the header as well
        texts = [text.removeprefix("<|im_start|>assistant\n") for text in texts]
    if name == "blocks with a header":
        texts = [text.removeprefix("Assistant: ") for text in texts]
    assert [text.strip() for text in texts] == [answer + end for answer in ANSWERS]
    (row,) = rendering.rows
    assert all(message["content"] in row.text for message in TALK)
    assert row.reference.strip().endswith(ANSWERS[1])
    assert (notice in " ".join(rendering.notices)) if notice else rendering.notices == []


DROPS = {
    "everything": "hello",
    "answers": "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}",
    "questions": "{% for m in messages if m.role != 'user' %}{{ m.content }}</s>{% endfor %}",
    "the first turns": "{% for m in messages[-2:] %}{{ m.content }}</s>{% endfor %}",
    "system": "{% for m in messages if m.role != 'system' %}{{ m.content }}</s>{% endfor %}",
    "another key": "{% for m in messages %}{{ m.text }}</s>{% endfor %}",
    "parts it prints": "{% for m in messages %}{% if m.content is string %}{% else %}"
    "{{ m.content }}{% endif %}</s>{% endfor %}",
    "all but ten characters": "{% for m in messages %}{{ m.content[:10] }}</s>{% endfor %}",
}


@pytest.mark.parametrize("name", DROPS)
@pytest.mark.parametrize("completion_only", [True, False])
def test_a_template_that_drops_a_message_is_refused(name, completion_only):
    text = refused(DROPS[name], [SYSTEM, *TALK], completion_only=completion_only)
    assert "does not write what it says" in text and "data.chat_template" in text


def test_generation_blocks_without_the_answer_are_refused():
    text = refused(blocks("<|end|>", before="{{ m.content }}"), TALK)
    assert "leave its answer out" in text


def test_contents_may_be_trimmed_and_tool_results_escaped():
    talk = [
        {"role": "user", "content": "  a\n\n b  "},
        {"role": "assistant", "content": "call"},
        {"role": "tool", "content": '{"a": "ü\n"}'},
        {"role": "assistant", "content": " done\n"},
    ]
    template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'tool' %}{{ m.content | tojson }}"
        "{% else %}{{ m.content.split() | join(' ') }}{% endif %}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert learned(rendered(template, talk)) == ["call</s>", "done</s>"]


# What each form of template does with the arguments of a call.
FORMS = {
    "object": "{{ call.function.arguments | tojson }}",
    "text": "{{ call.function.arguments }}",
    "joined": "{{ '' + call.function.arguments + '' }}",
    "tilde": "{{ '' ~ call.function.arguments }}",
    "either": "{{ call.function.arguments if call.function.arguments is string "
    "else call.function.arguments | tojson }}",
    "items": "{ {%- for k, v in call.function.arguments.items() %}"
    "{{ ', ' if not loop.first }}{{ k | tojson }}: {{ v | tojson }}{% endfor -%} }",
}
ARGUMENTS = {"city": 'Bern "Ost"', "n": 2, "ok": True, "x": None, "deep": {"a": [1, {"b": "ü"}]}}


def with_call(arguments):
    call = {"type": "function", "function": {"name": "look_up", "arguments": arguments}}
    return [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": "done"},
    ]


@pytest.mark.parametrize(
    "given", [ARGUMENTS, json.dumps(ARGUMENTS, ensure_ascii=False)], ids=["object", "text"]
)
@pytest.mark.parametrize("form", FORMS)
def test_arguments_are_json_in_every_kind_of_template(form, given):
    first, last = learned(rendered(chatml(FORMS[form]), with_call(given)))
    call = json.loads(first.removeprefix("<tool_call>\n").removesuffix("\n</tool_call><|im_end|>"))
    assert call == {"name": "look_up", "arguments": ARGUMENTS}
    assert last == "done<|im_end|>"


def test_arguments_that_are_text_keep_their_spelling():
    spelled = '{"b":1,"a":[2]}'
    (first, _) = learned(rendered(chatml(FORMS["text"]), with_call(spelled)))
    assert spelled in first


def writing_calls(how):
    calls = "{% for call in m.tool_calls or [] %}" + how + "{% endfor %}"
    return chatml().replace(CALLS.replace("ARGUMENTS", FORMS["object"]), calls)


@pytest.mark.parametrize("whole", ["{{ call }}", "{{ m.tool_calls }}", "{{ call | string }}"])
def test_a_whole_call_is_printed_as_json(whole):
    (first, _) = learned(rendered(writing_calls(whole), with_call(ARGUMENTS)))
    printed = json.loads(first.removesuffix("<|im_end|>"))
    call = printed[0] if isinstance(printed, list) else printed
    assert call["function"]["arguments"] == ARGUMENTS


@pytest.mark.parametrize("template", [LLAMA3, GLM, PARTS])
def test_calls_that_a_template_does_not_write_are_refused(template):
    text = refused(template, with_call(ARGUMENTS))
    assert "does not write its tool call ('look_up' is missing)" in text


def test_calls_in_pythons_notation_are_refused():
    dumped = "{{ {'name': call.function.name, 'arguments': call.function.arguments} }}"
    assert "Python's notation" in refused(writing_calls(dumped), with_call({"a": 1}))


TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"a": None, "b": [{}]}}}


@pytest.mark.parametrize(
    "path, keeps_null", [("a.jsonl", True), ("a.parquet", False), ("o/n", False)]
)
def test_nulls_that_the_format_fills_in_are_left_out(path, keeps_null):
    fields = {
        "messages": with_call({"a": 1, "b": None, "c": [{"d": None, "e": 2}]}),
        "tools": [TOOL],
    }
    (row,) = rendered(chatml(), fields, path=path).rows
    assert ("null" in row.text) is keeps_null
    assert '"e": 2' in row.text


def test_tools_that_are_not_written_are_a_notice():
    fields = {"messages": with_call({}), "tools": [TOOL]}
    template = chatml().replace("{% if tools %}", "{% if false %}")
    fields["messages"] = TALK
    (line,) = rendered(template, fields).notices
    assert "does not write the tools of 1 rows (look_up" in line


@pytest.mark.parametrize(
    "flag",
    [{"weight": 0}, {"train": False}, {"training": False}, {"weight": 0.0, "train": True}],
    ids=str,
)
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_a_message_that_the_row_leaves_out_is_not_learned(flag, name):
    talk = [dict(m) for m in TALK]
    if name == "conversations":
        names = {"user": "human", "assistant": "gpt"}
        talk = [{"from": names[m["role"]], "value": m["content"]} for m in talk]
    talk[1] |= flag
    talk[3] |= {"weight": 1}
    for template in (chatml(), blocks("{{ m.content }}<|end|>")):
        (text,) = learned(rendered(template, {name: talk}))
        assert text.startswith(ANSWERS[1])
        (last,) = learned(rendered(template, {name: [talk[0], talk[3], talk[2], talk[1]]}))
        assert last.startswith(ANSWERS[1])
    text = refused(chatml(), {name: talk}, completion_only=False)
    assert "data.completion_only" in text


@pytest.mark.parametrize("flag", [{"weight": 0.5}, {"weight": "0"}, {"train": "no"}], ids=str)
def test_other_weights_are_refused(flag):
    assert "leaves it out of the loss" in refused(chatml(), [TALK[0], TALK[1] | flag])
    assert "only messages of the assistant are learned" in refused(
        chatml(), [TALK[0] | {"train": True}, TALK[1]]
    )


@pytest.mark.parametrize("role", ["narrator", "ai", "Assistant", "assistent", ""])
def test_unknown_roles_are_refused(role):
    text = refused(chatml(), [TALK[0], TALK[1] | {"role": role}])
    assert f"has the role {role!r}" in text and "known are" in text


@pytest.mark.parametrize(
    "role, written",
    [
        ("gpt", "assistant"),
        ("human", "user"),
        ("developer", "system"),
        ("function", "tool"),
    ],
)
def test_roles_of_other_formats_are_renamed(role, written):
    (row,) = rendered(chatml(), [{"role": role, "content": "zzz"}, *TALK]).rows
    assert f"<|im_start|>{written}\nzzz" in row.text


def test_roles_that_the_template_names_are_passed_on():
    template = chatml().replace("{{ m.role }}", "{{ 'D' if m.role == 'developer' else m.role }}")
    (row,) = rendered(template, [{"role": "developer", "content": "zzz"}, *TALK]).rows
    assert "<|im_start|>D\nzzz" in row.text


def test_several_templates_are_chosen_by_name():
    both = {"default": "{% if tools %}{{ 1 + 'a' }}{% endif %}" + chatml(), "tool_use": LLAMA3}
    tools = {"messages": TALK, "tools": [TOOL]}
    assert "<|im_start|>" in rendered(both, TALK).rows[0].text
    assert "<|start_header_id|>" in rendered(both, tools).rows[0].text
    assert "<|im_start|>" in rendered({"chat": chatml()}, TALK).rows[0].text
    unnamed = {"chat": chatml(), "tool_use": LLAMA3}
    assert "none is named default" in refused(unnamed, TALK)
    assert "<|im_start|>" in rendered(unnamed, TALK, chat_template="chat").rows[0].text
    assert "no template of that name" in refused(unnamed, TALK, chat_template="chta")
    assert "<|start_header_id|>" in rendered(chatml(), TALK, chat_template=LLAMA3).rows[0].text


THOUGHTS = ["first I think", "then I think again"]
THINKING = [
    TALK[0],
    {"role": "assistant", "content": f"<think>\n{THOUGHTS[0]}\n</think>\n\nIt is 4."},
    TALK[2],
    {"role": "assistant", "content": f"<think>{THOUGHTS[1]}</think>That makes 6."},
]


def test_split_turns_takes_templates_that_change_earlier_answers():
    text = refused(QWEN3, THINKING)
    assert "once others follow" in text and "data.split_turns: true" in text
    rendering = rendered(QWEN3, THINKING, split_turns=True)
    first, second = rendering.rows
    assert [row.where for row in rendering.rows] == ["a.jsonl:1 answer 1", "a.jsonl:1 answer 2"]
    assert first.group == second.group == "a.jsonl:1"
    assert learned(rendering) == [
        f"<think>\n{thought}\n</think>\n\n{answer}<|im_end|>"
        for thought, answer in zip(THOUGHTS, ANSWERS, strict=True)
    ]
    assert THOUGHTS[0] in first.text and THOUGHTS[0] not in second.text
    assert rendering.notices == []


def test_splitting_turns_changes_no_answer_of_an_ordinary_template():
    together, apart = rendered(chatml(), TALK), rendered(chatml(), TALK, split_turns=True)
    assert learned(together) == learned(apart)
    assert together.rows[0].text == apart.rows[1].text


def test_thinking_that_is_left_out_is_a_notice():
    (line,) = rendered(DEEPSEEK, THINKING[:2]).notices
    assert "leaves out the thinking of answers that are learned (1 rows)" in line
    talk = [TALK[0], TALK[1] | {"reasoning_content": THOUGHTS[0]}]
    assert "leaves out the thinking" in rendered(chatml(), talk).notices[0]
    (text,) = learned(rendered(QWEN3, talk))
    assert THOUGHTS[0] in text


def test_variables_of_the_template_are_a_setting_and_a_column():
    off = {"enable_thinking": False}
    (by_setting,) = learned(rendered(QWEN3, TALK[:2], chat_template_kwargs=off))
    row = {"messages": TALK[:2], "chat_template_kwargs": off | {"other": None}}
    assert learned(rendered(QWEN3, row)) == [by_setting] == ["It is 4.<|im_end|>"]
    assert learned(rendered(QWEN3, TALK[:2])) == ["<think>\n\n</think>\n\nIt is 4.<|im_end|>"]
    wrong = {"enable_thinkin": False}
    text = refused(QWEN3, TALK[:2], chat_template_kwargs=wrong)
    assert "does not read" in text and "closest  enable_thinking" in text
    (line,) = rendered(chatml(), {"messages": TALK[:2], "chat_template_kwargs": off}).notices
    assert "does not read 'enable_thinking', which 1 rows set" in line
    assert "does not read" in refused(chatml(), TALK, chat_template_kwargs={"messages": []})


def test_prompt_and_completion_may_be_messages():
    fields = {"prompt": [SYSTEM, *TALK[:3]], "completion": [TALK[3]]}
    rendering = rendered(chatml(), fields)
    assert rendering.kind == "prompt" and rendering.rows[0].special
    assert learned(rendering) == [ANSWERS[1] + "<|im_end|>"]
    mixed = [Row(fields, "a:1"), Row({"prompt": "x", "completion": "y"}, "a:2")]
    chat, plain = render(mixed, DataConfig(path="a"), Tokenizer(chatml())).rows
    assert (chat.special, plain.special, plain.prompt) == (True, False, "x")
    text = refused(chatml(), {"prompt": "x", "completion": [TALK[1]]})
    assert "completion is dict, not text" in text


def test_answers_must_be_in_their_own_turn():
    """The same words are elsewhere in the text, but not in the turn of the answer."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}|"
        "{% if not loop.last %}{{ messages[loop.index].content }}{% endif %}"
        "{% elif not loop.last %}{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    assert "no loss mask" in refused(template, TALK)
