"""The real files under ../shared: what is fit for training loads, the rest says why not."""

import pytest
from transformers import AutoTokenizer

from lorica.data.batch import pack
from lorica.data.config import DataConfig
from lorica.data.load import load_data
from lorica.errors import DataError

ASKED = {"prompt": "question", "completion": "answer"}
FILES = {
    "instruct/alpaca_1k/alpaca_data_1k.json": ({}, 1000),
    "instruct/alpagasus/dolly_3k.json": ({}, 2996),
    "instruct/alpagasus/random_9k.json": ({"limit": 3000}, 3000 - 1),  # one empty answer there
    "instruct/gsm8k/test.jsonl": ({"columns": ASKED}, 1319),
    "instruct/gsm8k/test_socratic.jsonl": ({"columns": ASKED}, 1319),
    "formats/llamafactory-demo/alpaca_en_demo.json": ({}, 999),
    "formats/llamafactory-demo/alpaca_zh_demo.json": ({}, 1000),
    "formats/llamafactory-demo/identity.json": ({}, 91),
    "formats/llamafactory-demo/c4_demo.jsonl": ({}, 300),
    "formats/llamafactory-demo/wiki_demo.txt": ({}, 1),
    "formats/llamafactory-demo/glaive_toolcall_en_demo.json": ({}, 300),
    "formats/fastchat/dummy_conversation.json": ({}, 500),
    "nlg/e2e_nlg/devset.csv": ({"columns": {"prompt": "mr", "completion": "ref"}}, 4672),
}
LONG = {name for name, (_, rows) in FILES.items() if rows > 1000 or "_zh_" in name}
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
    found = AutoTokenizer.from_pretrained(shared / "data/tokenizers/gpt2")
    qwen = shared / "data/formats/chat_templates/qwen2.5-instruct.jinja"
    found.chat_template = qwen.read_text()
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in FILES]
)
def test_what_is_fit_for_training_loads(shared, tokenizer, name):
    settings, rows = FILES[name]
    config = DataConfig(path=str(shared / "data" / name), validation=0, **settings)
    data = load_data(config, tokenizer, seed=0, max_length=1_000_000)
    assert len(data.train) == rows
    assert all(e.learned[-1] and e.ids[-1] == tokenizer.eos_token_id for e in data.train)
    assert pack(data.train[:8]).tokens == sum(len(e.ids) for e in data.train[:8])


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_says_why_not(shared, tokenizer, name):
    with pytest.raises(DataError, match=REFUSED[name]) as error:
        load_data(DataConfig(path=str(shared / "data" / name)), tokenizer, seed=0, max_length=512)
    assert error.value.fix


def test_a_whole_book_becomes_blocks(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "data/models/stories260K")
    config = DataConfig(path=str(shared / "data/text/tinyshakespeare/input.txt"))
    data = load_data(config, tokenizer, seed=0, max_length=128)
    blocks = len(data.train) + len(data.validation)
    assert blocks > 5200 and len(data.validation) == 256  # a twentieth would be more


def test_a_stories_conversation_has_the_references_answers(shared, tokenizer):
    path = shared / "data/formats/fastchat/dummy_conversation.json"
    data = load_data(DataConfig(path=str(path), validation=0), tokenizer, seed=0, max_length=None)
    first = data.train[0]
    said = tokenizer.decode([i for i, on in zip(first.ids, first.learned, strict=True) if on])
    assert said == (
        "I am Vicuna, a language model trained by researchers from Large Model Systems "
        "Organization (LMSYS).<|im_end|>You too!<|im_end|><|endoftext|>"
    )
