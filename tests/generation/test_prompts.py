"""Prompts of generation are written in the format of the adapter's training."""

import json

import pytest

import lorica
from lorica.base.load import load as load_base
from lorica.data.config import DataConfig
from lorica.data.load import load_data as load_rows
from lorica.data.prompt_format import (
    PromptFormat,
    format_notices,
    prompt_format_from_dict,
    with_training_templates,
)
from lorica.data.render import render
from lorica.data.render_prompt import ALPACA_TEMPLATE
from lorica.data.source import Row
from lorica.errors import DataError, FileError
from lorica.formats.open_adapter import open_adapter
from lorica.formats.save import save
from lorica.generation.chat import Chat
from lorica.generation.generate import generate
from lorica.generation.prompts import (
    conversation_notices,
    end_of_turn,
    plain_prompt_notices,
    render_messages,
)
from tests.data.templates import GEMMA, QWEN3, chatml

PLAIN = {
    "alpaca": {"instruction": "hello", "input": "", "output": "ho"},
    "prompt": {"prompt": "hello", "completion": "ho"},
}
TALK = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "ho"}]}
# a row of a training, its settings, and what the notice says
TRAININGS = {
    "chat": (TALK, {"chat_template": chatml()}, ""),
    "chat with its own variables": (
        TALK,
        {"chat_template": QWEN3, "chat_template_kwargs": {"enable_thinking": False}},
        "",
    ),
    "the base's chat template": (TALK, {}, ""),
    "alpaca": (PLAIN["alpaca"], {}, "each message is an instruction by itself"),
    "alpaca of another text": (
        PLAIN["alpaca"],
        {"prompt_template": "Q: {{ instruction }}{{ input }}\nA:"},
        "trained with a prompt template",
    ),
    "prompt": (PLAIN["prompt"], {}, "trained with plain prompts: each message is a prompt"),
    "prompt with a text": (
        PLAIN["prompt"],
        {"prompt_template": "<{{ prompt }}>"},
        "trained with a prompt template: each message is a prompt",
    ),
}


@pytest.fixture(scope="module")
def base():
    return load_base("bundled")


def trained(base, tmp_path, row, settings):
    """An adapter folder as training leaves it, and the rows that it was trained on."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    config = DataConfig(path=str(file), validation=0.0, **settings)
    data = load_rows(config, base.tokenizer, seed=0, max_length=None)
    lorica.adapt(base.model, lorica.Lora(r=1), name="asked", target_modules=["q_proj"])
    base_path = "bundled"
    try:
        save(
            base.model,
            tmp_path / "adapter",
            "asked",
            tokenizer=base.tokenizer,
            base_path=base_path,
            prompt_format=data.prompt_format,
        )
    finally:
        lorica.detach(base.model, "asked")
    return tmp_path / "adapter", data, config


@pytest.mark.parametrize("name", TRAININGS)
def test_a_prompt_of_generation_is_that_of_training(base, tmp_path, name):
    row, settings, words = TRAININGS[name]
    folder, data, config = trained(base, tmp_path, row, settings)
    opened = open_adapter(folder)
    rendered = render([Row(row, "a:1")], config, base.tokenizer).rows[0]
    asked = render_messages(opened, [{"role": "user", "content": "hello"}])
    assert asked.prompt == rendered.prompt
    assert asked.special is rendered.special
    assert end_of_turn(opened) == rendered.ending
    notices = conversation_notices(opened)
    assert words in " ".join(notices) if words else notices == []
    again = with_training_templates(
        opened.prompt_format, DataConfig(path=config.path, validation=0.0)
    )
    rows = load_rows(again, opened.tokenizer, seed=0, max_length=None)
    assert [list(e.ids) for e in rows.train] == [list(e.ids) for e in data.train]
    assert format_notices(opened.prompt_format, rows.prompt_format, opened.tokenizer) == []
    template = settings.get("chat_template", base.tokenizer.chat_template)
    assert opened.tokenizer.chat_template == template
    replaced = "the chat template that the adapter was trained with is used" in str(opened.notices)
    assert replaced is ("chat_template" in settings)


def test_chat_and_generate_have_a_notice_on_their_prompts(base, tmp_path):
    folder, _, _ = trained(base, tmp_path, PLAIN["alpaca"], {})
    opened = open_adapter(folder)
    talk = Chat(opened, system="Be kind.")
    assert talk.notices == conversation_notices(opened, has_system=True) and len(talk.notices) == 1
    assert (
        "Be kind."
        in render_messages(
            opened,
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}],
        ).prompt
    )
    generation = generate(opened, ["hello"], chat=True, max_new_tokens=1)
    assert generation.notices[0] == conversation_notices(opened)[0]
    generation = generate(opened, ["hello"], max_new_tokens=1)
    assert "--chat puts it around them" in generation.notices[0]
    assert plain_prompt_notices(base) == []


def test_a_notice_says_that_the_template_does_not_use_the_system_message(base, tmp_path):
    row, settings, _ = TRAININGS["alpaca of another text"]
    opened = open_adapter(trained(base, tmp_path, row, settings)[0])
    assert "the system message is not used" in conversation_notices(opened, has_system=True)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
    assert render_messages(opened, messages).prompt == "Q: hello\nA:"


def test_rows_of_another_format_are_named(base, tmp_path):
    _, data, _ = trained(base, tmp_path, PLAIN["alpaca"], {})
    form = data.prompt_format
    other = PromptFormat(kind="chat", template=GEMMA, eos=form.eos)
    (line,) = format_notices(form, other, base.tokenizer)
    assert "trained with the text of Alpaca rows; these rows are written with a chat" in line
    ended = PromptFormat(kind="alpaca", template=ALPACA_TEMPLATE, eos="<other>")
    (line,) = format_notices(ended, form, base.tokenizer)
    assert "rows ended in '<other>' in training" in line
    assert format_notices(None, form, base.tokenizer) == []


def test_a_format_survives_the_manifest():
    for form in (
        PromptFormat(
            kind="chat",
            template={"default": "a", "tool_use": "b"},
            kwargs={"x": [1]},
            end_of_turn="</s>",
            eos="</s>",
        ),
        PromptFormat(kind="text"),
    ):
        assert prompt_format_from_dict(json.loads(json.dumps(form.as_dict())), "here") == form
    assert prompt_format_from_dict(None, "here") is None


@pytest.mark.parametrize(
    "change",
    [
        {"template": "other"},
        {"template_sha256": "0"},
        {"template_sha256": None},
        {"kind": "chta"},
        {"kind": None},
        {"kwargs": []},
        {"kwargs": "x"},
        {"template": 3},
        {"eos": 3},
        {"end_of_turn": []},
    ],
)
def test_a_changed_record_is_refused(base, tmp_path, change):
    folder, _, _ = trained(base, tmp_path, TALK, {})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["prompt_format"] |= change
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileError, match="prompt_format is damaged"):
        open_adapter(folder)
    for damaged in ("text", ["list"], 3):
        with pytest.raises(FileError, match="prompt_format is damaged"):
            prompt_format_from_dict(damaged, "here")


def test_an_adapter_without_a_recorded_format_is_prompted_through_the_base(base, tmp_path):
    lorica.adapt(base.model, lorica.Lora(r=1), name="asked", target_modules=["q_proj"])
    save(base.model, tmp_path / "adapter", "asked", tokenizer=base.tokenizer, base_path="bundled")
    lorica.detach(base.model, "asked")
    opened = open_adapter(tmp_path / "adapter")
    assert opened.prompt_format is None
    assert "hello" in render_messages(opened, [{"role": "user", "content": "hello"}]).prompt
    opened.tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        generate(opened, ["hello"], chat=True)
    assert "no chat template" in Chat(opened).notices[0]


def test_a_run_and_its_adapter_record_the_text_of_the_templates(tmp_path):
    file, template = tmp_path / "rows.jsonl", tmp_path / "alpaca.jinja"
    file.write_text((json.dumps(PLAIN["alpaca"]) + "\n") * 2)
    template.write_text("Q {{ instruction }}{{ input }} A")
    data = {"path": str(file), "validation": 0, "prompt_template": str(template)}
    result = lorica.train(
        base="bundled",
        data=data,
        max_steps=1,
        output=str(tmp_path / "run"),
        method={"name": "lora", "r": 1},
        show=False,
    )
    template.unlink()
    assert "Q {{ instruction }}" in (result.folder / "config.yaml").read_text()
    manifest = json.loads((result.folder / "adapter/manifest.json").read_text())
    assert manifest["prompt_format"]["template"] == "Q {{ instruction }}{{ input }} A"
    opened = open_adapter(result.folder)
    assert render_messages(opened, [{"role": "user", "content": "x"}]).prompt == "Q x A"
