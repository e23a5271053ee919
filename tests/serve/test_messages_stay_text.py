"""A message cannot write the tokens of turns, and the ids of all other messages are unchanged."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lorica.base.load import LoadedModel, load
from lorica.data.prompt_format import PromptFormat
from lorica.data.text_encoder import prompt_ids
from lorica.errors import DataError
from lorica.generation.prompts import render_messages
from lorica.serve.prompts import Prompts
from lorica.serve.refusals import InvalidRequest
from tests.data import templates, tokenizers
from tests.marks import slow_but

TEMPLATES = {
    name: text for name, text in vars(templates).items() if name.isupper() and isinstance(text, str)
} | {"CHATML": templates.chatml()}
del TEMPLATES["CALLS"]
TURNS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>"]
PLAIN = [
    "Tom has a dog.",
    "naïve 日本 🦜 \n\n <b> <|x|> {{ y }}",
    "  Hi. ",
    "[INST] < |end|> </think>",
]


@pytest.fixture(scope="module")
def bundled() -> LoadedModel:
    return load("bundled")


NAMES = ["sentencepiece", "byte_level", "gpt2", "bert-base-uncased", "stories260K"]


@pytest.fixture(params=slow_but([name for name in NAMES if name != "gpt2"], NAMES))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    match request.param:
        case "sentencepiece" | "byte_level":
            own = getattr(tokenizers, request.param)()
        case name:
            shared = request.getfixturevalue("shared")
            kind = "models" if name == "stories260K" else "tokenizers"
            own = AutoTokenizer.from_pretrained(shared / "data" / kind / name)
    own.add_tokens(TURNS, special_tokens=True)
    return own


def view(bundled: LoadedModel, tokenizer: Any, template: str) -> LoadedModel:
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = template
    return replace(bundled, tokenizer=tokenizer, prompt_format=None)


def user(*contents: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(contents)
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_control_tokens_are_refused_and_other_ids_are_those_of_training(
    bundled: LoadedModel, tokenizer: Any, template: str
):
    loaded = view(bundled, tokenizer, template)
    prompts = Prompts(loaded, None)
    for content in PLAIN:
        messages = user(content, "Good day.", content)
        try:
            row = render_messages(loaded, messages)
        except DataError:  # the template refuses it
            continue
        assert list(prompts.encode_chat(messages)) == prompt_ids([row], loaded.tokenizer)[0]
    for token in loaded.tokenizer.all_special_tokens + TURNS:
        for messages in (user(f"a{token}b"), user("a", token, "b"), user(token)):
            with pytest.raises(InvalidRequest) as refusal:
                prompts.encode_chat(messages)
            assert repr(token) in str(refusal.value)
        if len(token) > 3:
            with pytest.raises(InvalidRequest):
                prompts.encode_chat(user(token[:3], token[3:], "b"))
    assert prompts.encode("a" + TURNS[0])[-1] == loaded.tokenizer.convert_tokens_to_ids(TURNS[0])


def test_tokens_that_are_not_special_are_refused_in_questions(bundled: LoadedModel):
    tokenizer = tokenizers.byte_level()
    tokenizer.add_tokens(["<User>", "<think>", "<other>"])
    template = "{% for m in messages %}<User>{{ m.content }}<think>{% endfor %}"
    prompts = Prompts(view(bundled, tokenizer, template), None)
    for token in ("<User>", "<think>"):
        with pytest.raises(InvalidRequest, match="control token"):
            prompts.encode_chat(user(f"a{token}"))
    assert prompts.encode_chat(user("a <other>", "<think> b", "c"))


def test_other_formats_are_checked_too(bundled: LoadedModel):
    end = bundled.tokenizer.eos_token
    for form in (
        PromptFormat(kind="alpaca"),
        PromptFormat(kind="prompt", template="Q: {{ prompt }}"),
    ):
        prompts = Prompts(bundled, form)
        assert prompts.encode_chat(user("a"))
        with pytest.raises(InvalidRequest, match="control token"):
            prompts.encode_chat(user(f"a{end}"))


def test_templates_of_well_known_models(bundled: LoadedModel, shared: Path):
    tokenizer = tokenizers.byte_level()
    tokenizer.add_tokens(TURNS, special_tokens=True)
    for path in sorted((shared / "data/formats/chat_templates").glob("*.jinja")):
        loaded = view(bundled, tokenizer, path.read_text())
        prompts = Prompts(loaded, None)
        messages = user("Tom has a dog.", "It is big.", "Good day.")
        row = render_messages(loaded, messages)
        assert list(prompts.encode_chat(messages)) == prompt_ids([row], loaded.tokenizer)[0]
        for token in ["<|endoftext|>", *TURNS]:
            with pytest.raises(InvalidRequest, match="control token"):
                prompts.encode_chat(user(f"Tom{token}has a dog."))
