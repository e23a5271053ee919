"""Modelfiles for Ollama: its template writes what the chat template writes, or there is none."""

import re

import pytest

from benchmarks.runtimes import tiny_tokenizers
from lorica.data.chat_template import chat_templates
from lorica.handover.gguf.model import load_tokenizer
from lorica.handover.gguf.modelfile import turns_of, write_modelfile

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NUMBERED = (
    "{% for m in messages %}{{ loop.index }}:{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
TALK = [
    {"role": "user", "content": "Hello,  you."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "What is\n2 + 2?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}


def with_template(template):
    tokenizer = tiny_tokenizers.byte_level("qwen2")
    tokenizer.chat_template = template
    return tokenizer


def expand(text, messages):
    """What Ollama's template language makes of a range with an if for each role."""
    body = re.fullmatch(
        r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}", text, re.DOTALL
    )
    assert body is not None
    pieces = re.split(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}', body[1])
    branches = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    return "".join(
        branches[m["role"]].replace("{{ .Content }}", m["content"])
        for m in messages
        if m["role"] in branches
    )


def written(path):
    text = path.read_text()
    return text, re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)


@pytest.mark.parametrize("which", ["bundled", "chatml"])
def test_the_template_is_translated(which, tmp_path):
    tokenizer = load_tokenizer("bundled") if which == "bundled" else with_template(CHATML)
    notices = write_modelfile(tmp_path / "Modelfile", tokenizer, "base.gguf", "lora.gguf")
    text, template = written(tmp_path / "Modelfile")
    assert text.startswith("FROM ./base.gguf\nADAPTER ./lora.gguf\n") and template is not None
    own = chat_templates(tokenizer).for_tools(None)
    talks = [TALK, TALK[:1]] + ([[SYSTEM, *TALK]] if which == "chatml" else [])
    for talk in talks:
        assert expand(template[1], talk) == own.prompt(talk)
    end = "<|end|>" if which == "bundled" else "<|im_end|>"
    assert f'PARAMETER stop "{end}"\n' in text
    assert len(notices) == (which == "bundled")  # it takes no system message


def test_bos_is_left_to_llama_cpp(tmp_path):
    tokenizer = tiny_tokenizers.sentence_piece(prefix=True)
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    turns = turns_of(chat_templates(tokenizer).for_tools(None), "<s>")
    assert turns is not None and turns.before_user == "<|im_start|>user\n"


@pytest.mark.parametrize("template", [NUMBERED, CHATML.replace("<|im_end|>", '"""')])
def test_what_has_no_translation_is_a_notice(template, tmp_path):
    notices = write_modelfile(tmp_path / "Modelfile", with_template(template), "merged.gguf")
    text, template_in_it = written(tmp_path / "Modelfile")
    assert template_in_it is None and "ADAPTER" not in text
    assert "no translation" in notices[0]


def test_a_base_without_a_template_gets_the_prompt_as_it_is(tmp_path):
    tokenizer = tiny_tokenizers.byte_level("qwen2")
    assert write_modelfile(tmp_path / "Modelfile", tokenizer, "m.gguf") == []
    assert written(tmp_path / "Modelfile")[1][1] == "{{ .Prompt }}"
