"""Real data sets and chat templates in ../shared: they load, or the error says why not."""

import pytest
from transformers import AutoTokenizer

from lorica.data.batch import pack
from lorica.data.config import DataConfig
from lorica.data.load import load_data
from lorica.data.render import render
from lorica.data.source import Row
from lorica.errors import DataError
from tests.data.test_chat_template import SYSTEM, TALK, Tokenizer
from tests.marks import slow_but

QUESTIONS = {"prompt": "question", "completion": "answer"}
FILES = {
    "instruct/alpaca_1k/alpaca_data_1k.json": ({}, 1000),
    "instruct/alpagasus/dolly_3k.json": ({}, 2996),
    "instruct/alpagasus/random_9k.json": ({"limit": 3000}, 3000 - 1),  # one empty answer there
    "instruct/gsm8k/test.jsonl": ({"columns": QUESTIONS}, 1319),
    "instruct/gsm8k/test_socratic.jsonl": ({"columns": QUESTIONS}, 1319),
    "formats/llamafactory-demo/alpaca_en_demo.json": ({}, 999),
    "formats/llamafactory-demo/alpaca_zh_demo.json": ({}, 1000),
    "formats/llamafactory-demo/identity.json": ({}, 91),
    "formats/llamafactory-demo/c4_demo.jsonl": ({}, 300),
    "formats/llamafactory-demo/wiki_demo.txt": ({}, 1),
    "formats/llamafactory-demo/glaive_toolcall_en_demo.json": ({"limit": 100}, 100),
    "formats/fastchat/dummy_conversation.json": ({}, 500),
    "nlg/e2e_nlg/devset.csv": ({"columns": {"prompt": "mr", "completion": "ref"}}, 4672),
}
SHORT = {f"formats/llamafactory-demo/{name}" for name in ("identity.json", "c4_demo.jsonl")}
REFUSED = {
    "formats/llamafactory-demo/kto_en_demo.json": "preferences",
    "formats/llamafactory-demo/dpo_en_demo.json": "preferences",
    "formats/fastchat/question.jsonl": "no known format",  # questions without answers
    "instruct/self-instruct/seed_tasks.jsonl": "no known format",  # answers inside a list
    "formats/llamafactory-demo/dataset_info.json": "0 lists",
    "classify/ag_news/test.csv": "a header with column names",
}


@pytest.fixture(scope="module")
def tokenizer(shared):
    own = AutoTokenizer.from_pretrained(shared / "data/tokenizers/gpt2")
    qwen = shared / "data/formats/chat_templates/qwen2.5-instruct.jinja"
    own.chat_template = qwen.read_text()
    return own


@pytest.mark.parametrize("name", slow_but(SHORT, FILES))
def test_data_sets_load(shared, tokenizer, name):
    settings, rows = FILES[name]
    config = DataConfig(path=str(shared / "data" / name), validation=0, **settings)
    data = load_data(config, tokenizer, seed=0, max_length=1_000_000)
    assert len(data.train) == rows
    assert all(e.learned[-1] and e.ids[-1] == tokenizer.eos_token_id for e in data.train)
    assert pack(data.train[:8]).tokens == sum(len(e.ids) for e in data.train[:8])


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_with_a_fix(shared, tokenizer, name):
    with pytest.raises(DataError, match=REFUSED[name]) as error:
        load_data(DataConfig(path=str(shared / "data" / name)), tokenizer, seed=0, max_length=512)
    assert error.value.fix


def test_a_whole_book_becomes_blocks(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "data/models/stories260K")
    config = DataConfig(path=str(shared / "data/text/tinyshakespeare/input.txt"))
    data = load_data(config, tokenizer, seed=0, max_length=128)
    blocks = len(data.train) + len(data.validation)
    assert blocks > 5200 and len(data.validation) == 256  # a twentieth would be more


def test_the_answers_of_a_conversation_are_learned(shared, tokenizer):
    path = shared / "data/formats/fastchat/dummy_conversation.json"
    data = load_data(DataConfig(path=str(path), validation=0), tokenizer, seed=0, max_length=None)
    first = data.train[0]
    learned = tokenizer.decode([i for i, on in zip(first.ids, first.learned, strict=True) if on])
    assert learned == (
        "I am Vicuna, a language model trained by researchers from Large Model Systems "
        "Organization (LMSYS).<|im_end|>You too!<|im_end|><|endoftext|>"
    )


# The end of turn of each template, with BOS <s> and EOS </s>.
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
# These can be masked with their indents and line breaks. The generation prompt of the others then
# ends in a line break that they do not write before an answer.
MASKED_UNCHANGED = {
    "granite-3.0-instruct",
    "llama-2-chat",
    "mistral-instruct",
    "qwen2.5-instruct",
}


@pytest.fixture(scope="module")
def chat_templates(shared):
    files = sorted((shared / "data/formats/chat_templates").glob("*.jinja"))
    assert sorted(path.stem for path in files) == sorted(ENDINGS)
    return {path.stem: path.read_text() for path in files}


def compact(text):
    """The template without indents and line breaks, as its repository says to load it."""
    return text if "{%-" in text else text.replace("    ", "").replace("\n", "")


def render_talk(source, messages, **settings):
    config = DataConfig(path="a.jsonl", **settings)
    (row,) = render([Row({"messages": messages}, "a.jsonl:1")], config, Tokenizer(source)).rows
    return row


def test_real_chat_templates_are_masked(chat_templates):
    answers = [m["content"] for m in TALK if m["role"] == "assistant"]
    for name, text in chat_templates.items():
        for system in ([], SYSTEM):
            row = render_talk(compact(text), [*system, *TALK])
            learned = [s.text.strip() for s in row.spans if s.learned]
            space = " " if name == "llama-2-chat" else ""
            assert learned == [f"{a}{space}{ENDINGS[name]}" for a in answers], name
            assert (row.ending, row.reference.strip()) == (ENDINGS[name], answers[-1]), name


def test_real_chat_templates_with_their_indents_are_masked_or_refused(chat_templates):
    for name, text in chat_templates.items():
        if name in MASKED_UNCHANGED:
            learned = [s.text for s in render_talk(text, TALK).spans if s.learned]
            assert TALK[1]["content"] in learned[0] and TALK[3]["content"] in learned[1]
            continue
        with pytest.raises(DataError, match="not the one that it writes") as error:
            render_talk(text, TALK)
        assert "completion_only: false" in error.value.fix
