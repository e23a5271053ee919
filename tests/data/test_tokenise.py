"""Ids and labels: what generation will see, EOS learned, BOS once."""

import pytest
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lorica.data.config import DataConfig
from lorica.data.dataset import Dataset
from lorica.data.load import load_data
from lorica.data.render import render
from lorica.data.rendered_row import RenderedRow, TextSpan
from lorica.data.source import Row
from lorica.data.text_encoder import prompt_ids, truncate_classified
from lorica.data.token_store import StoreWriter
from lorica.data.tokenise import ClassifierTokeniser, RowTokeniser
from lorica.errors import DataError

BASES = ["models/stories260K", "models/tinystories-656k", "tokenizers/gpt2"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [{"role": "user", "content": "Hi there."}, {"role": "assistant", "content": "Good day."}]


@pytest.fixture(scope="module", params=BASES)
def tokenizer(request, shared):
    return AutoTokenizer.from_pretrained(shared / "data" / request.param)


@pytest.fixture
def gpt2(shared):
    return AutoTokenizer.from_pretrained(shared / "data/tokenizers/gpt2")


def tokenise(rows, tokenizer):
    """(examples as a store gives them, notices)."""
    tokeniser, writer = RowTokeniser(tokenizer), StoreWriter("int32", seed=0)
    writer.add(rows, tokeniser.tokens(rows))
    return list(Dataset.whole(writer.store({"kind": "prompt"}))), tokeniser.notices()


def row(*pieces, special=False, kind="prompt"):
    return RenderedRow(kind, tuple(TextSpan(*p) for p in pieces), special, where="a:1")


def one(pieces, tokenizer, **rest):
    (example,), lines = tokenise([row(*pieces, **rest)], tokenizer)
    return example, lines


def learned_text(example, tokenizer):
    kept = zip(example.ids, example.learned, strict=True)
    return tokenizer.decode([i for i, learned in kept if learned])


def test_the_answer_and_eos_are_learned(tokenizer):
    pieces = [("Tom has a dog.\n", False), ("It is big.", True)]
    example, lines = one(pieces, tokenizer)
    assert lines == []
    assert example.ids[-1] == tokenizer.eos_token_id and example.learned[-1]
    assert learned_text(example, tokenizer).strip() == "It is big." + tokenizer.eos_token
    assert example.ids[: len(example.prompt)] == example.prompt
    assert example.prompt == prompt_ids([row(*pieces)], tokenizer)[0]
    assert not example.learned[0]


def test_bos_stands_once(tokenizer):
    bos = tokenizer.bos_token_id
    fronts = tokenizer("a")["input_ids"].count(bos)  # 1, but 0 for gpt2
    example, _ = one([("Tom. ", False), ("Yes.", True)], tokenizer)
    assert example.ids[:-1].count(bos) == fronts
    mine, _ = one([(tokenizer.bos_token + "Tom. ", False), ("Yes.", True)], tokenizer)
    assert mine.ids[:-1].count(bos) == 1
    chat, _ = one([("Tom. ", False), ("Yes.", True)], tokenizer, special=True)
    assert chat.ids[:-1].count(bos) == 0


def test_doubled_bos_is_named(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "data/models/stories260K")
    example, lines = one([("<s><s>Tom. ", False), ("Yes.", True)], tokenizer, special=True)
    assert example.ids.count(1) == 1
    assert lines == ["1 rows began with BOS twice; one is left out: a:1"]


def test_a_token_over_the_border_is_cut_and_counted(gpt2):
    """'un' + 'likely' is one token; generation sees 'un' alone."""
    pieces = [("It is un", False), ("likely.", True)]
    example, lines = one(pieces, gpt2)
    assert example.prompt == gpt2("It is un")["input_ids"] == prompt_ids([row(*pieces)], gpt2)[0]
    assert learned_text(example, gpt2) == "likely.<|endoftext|>"
    assert "1 rows are tokenised in pieces" in lines[0]
    assert "end in a space" not in lines[0]
    _, lines = one([("It is ", False), ("likely.", True)], gpt2)
    assert "1 of these prompts end in a space" in lines[0]


def test_pieces_get_no_space_of_their_own(shared):
    """A SentencePiece tokenizer puts a space before any text; not before a later piece."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "data/models/stories260K")
    example, lines = one([("the", False), ("re it was.", True)], tokenizer)
    assert lines and tokenizer.decode(example.ids[1:-1]).strip() == "there it was."


def test_text_is_learned_whole(tokenizer):
    example, _ = one([("Once upon a time.", True)], tokenizer, kind="text")
    assert example.learned == [False] + [True] * (len(example.ids) - 1)


def test_everything_learned_but_the_first(gpt2):
    example, _ = one([("Hello there. ", True), ("Hi.", True)], gpt2)
    assert example.learned == [False] + [True] * (len(example.ids) - 1)


@pytest.mark.parametrize("ends", ["<|im_end|>", "<|endoftext|>"])
def test_eos_is_not_learned_twice(gpt2, ends):
    gpt2.chat_template = CHATML.replace("<|im_end|>", ends)
    rows = [Row({"messages": [*TALK, *TALK]}, "a:1")]
    (example,), _ = tokenise(render(rows, DataConfig(path="a"), gpt2).rows, gpt2)
    want = "Good day." + ends + ("<|endoftext|>" if ends == "<|im_end|>" else "")
    said = learned_text(example, gpt2)
    assert said.endswith(want) and not said.endswith("<|endoftext|><|endoftext|>")
    assert said.count("Good day.") == 2
    assert "assistant\n" not in said and "Hi" not in said


def test_turns_of_a_conversation_are_masked_by_token(tokenizer):
    tokenizer.chat_template = CHATML
    rows = [Row({"messages": TALK * 3}, "a:1")]
    rendered = render(rows, DataConfig(path="a"), tokenizer).rows
    (example,), _ = tokenise(rendered, tokenizer)
    said = learned_text(example, tokenizer)
    tokenizer.chat_template = None
    assert said.count("Good day.") == 3 and "Hi" not in said
    assert example.prompt == prompt_ids(rendered, tokenizer)[0]


def test_no_end_token_is_an_error(shared):
    bert = AutoTokenizer.from_pretrained(shared / "data/tokenizers/bert-base-uncased")
    with pytest.raises(DataError, match="no end-of-sequence token"):
        one([("a", False), ("b", True)], bert)


def test_rows_for_a_classifier_keep_their_special_tokens(shared):
    bert = AutoTokenizer.from_pretrained(shared / "data/tokenizers/bert-base-uncased")
    rows = [RenderedRow("label", (TextSpan("good film", False),), False, label="b", where="a:1")]
    (tokens,) = ClassifierTokeniser(bert).tokens(rows)
    assert tokens.ids == bert("good film")["input_ids"] and tokens.runs == []


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_of_a_classifier_are_cut_as_the_tokenizer_cuts(shared, side):
    for name in ("tokenizers/bert-base-uncased", "models/stories260K", "tokenizers/gpt2"):
        tokenizer = AutoTokenizer.from_pretrained(shared / "data" / name, truncation_side=side)
        for text in ("a film that is good beyond words", "bad"):
            for limit in range(3, 12):
                ids = tokenizer(text)["input_ids"]
                want = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
                if len(ids) > limit:
                    assert truncate_classified(ids, limit, tokenizer) == want


def test_characters_that_are_lost_are_named(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "data/models/tinystories-656k")
    _, lines = one([("2 + 2 =", False), (" 4", True)], tokenizer)
    assert lines[0].startswith("1 rows hold characters that the tokenizer cannot write")
    assert lines[0].endswith(": + = (a:1)")
    whole = AutoTokenizer.from_pretrained(shared / "data/models/stories260K")
    assert one([("2 + 2 = ü中🙂", False), (" 4", True)], whole)[1] == []


def test_many_rows_are_quick(gpt2):
    import time

    rows = [row((f"Question {i}?\n", False), (f"Answer {i}.", True)) for i in range(10_000)]
    start = time.perf_counter()
    examples, _ = tokenise(rows, gpt2)
    assert len(examples) == 10_000
    assert time.perf_counter() - start < 30


def digits(extra: str = "", behind: str = "", first: int = 2, **model):
    """A tokenizer of digits that puts <s> in front, as one of sums or of DNA might."""
    vocabulary = {"<s>": 0, "</s>": 1} | {c: first + i for i, c in enumerate(extra + "0123+= ")}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], **model))
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"<s> $A {behind}".strip(), special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("extra", ["", "a"])
def test_special_tokens_are_found_whatever_the_letters(extra):
    """The letter a is no token of many vocabularies."""
    example, lines = one([("1+1=", False), ("2", True)], own := digits(extra))
    assert example.prompt == own("1+1=")["input_ids"] and lines == []
    both = digits(extra, behind="</s>")
    ids = both("1+2=3+0=3")["input_ids"]
    want = both("1+2=3+0=3", truncation=True, max_length=6)["input_ids"]
    assert truncate_classified(ids, 6, both) == want


@pytest.mark.parametrize("special", [True, False])
def test_a_doubled_bos_is_taken_from_the_prompt_as_in_training(shared, special):
    own = AutoTokenizer.from_pretrained(shared / "data/models/stories260K")
    pieces = [("<s><s>user: hi\n", False), ("yes", True)]
    example, lines = one(pieces, own, special=special)
    (prompt,) = prompt_ids([row(*pieces, special=special)], own)
    assert example.ids[: len(prompt)] == prompt == example.prompt
    assert prompt[:2].count(own.bos_token_id) == 1 and "twice" in lines[0]


@pytest.mark.parametrize("answer", ["Ёлка", " two spaces", "\nx", "Hello you"])
def test_an_empty_prompt_has_no_token_of_the_answer(shared, answer):
    own = AutoTokenizer.from_pretrained(shared / "data/models/stories260K")
    example, lines = one([("", False), (answer, True)], own)
    assert example.prompt == [own.bos_token_id] and lines[1:] == []
    assert not any("border" in line for line in lines)


def test_ids_above_what_16_bits_hold(tmp_path):
    """Few tokens, but one with a number of its own choosing."""
    digits(first=70_000).save_pretrained(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1+1=", "completion": "2"}\n' * 3)
    own = AutoTokenizer.from_pretrained(tmp_path)
    data = load_data(DataConfig(path=str(rows), validation=0), own, seed=0, max_length=None)
    assert max(data.train[0].ids) > 70_000
