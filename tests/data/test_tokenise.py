"""Ids and labels: the prompt as generation sees it, EOS as the last label, BOS once."""

import pytest
from transformers import AutoTokenizer

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
from tests.data.templates import chatml
from tests.data.tokenizers import byte_level, digits, sentencepiece, wordpiece

TALK = [{"role": "user", "content": "Hi there."}, {"role": "assistant", "content": "Good day."}]


@pytest.fixture(params=[sentencepiece, byte_level], ids=["sentencepiece", "byte level"])
def tokenizer(request):
    return request.param()


def tokenise(rows, tokenizer):
    """(examples as a store gives them, notices)."""
    tokeniser, writer = RowTokeniser(tokenizer), StoreWriter("int32", seed=0)
    writer.add(rows, tokeniser.tokens(rows))
    return list(Dataset.whole(writer.store({"kind": "prompt"}))), tokeniser.notices()


def row(*spans, special=False, kind="prompt"):
    return RenderedRow(kind, tuple(TextSpan(*s) for s in spans), special, where="a:1")


def tokenise_row(spans, tokenizer, **settings):
    (example,), notices = tokenise([row(*spans, **settings)], tokenizer)
    return example, notices


def learned_text(example, tokenizer):
    pairs = zip(example.ids, example.learned, strict=True)
    return tokenizer.decode([i for i, learned in pairs if learned])


def test_the_answer_and_eos_are_learned(tokenizer):
    spans = [("Tom has a dog.\n", False), ("It is big.", True)]
    example, notices = tokenise_row(spans, tokenizer)
    assert notices == []
    assert example.ids[-1] == tokenizer.eos_token_id and example.learned[-1]
    assert learned_text(example, tokenizer).strip() == "It is big." + tokenizer.eos_token
    assert example.ids[: len(example.prompt)] == example.prompt
    assert example.prompt == prompt_ids([row(*spans)], tokenizer)[0]
    assert not example.learned[0]


def test_bos_occurs_once(tokenizer):
    bos = tokenizer.bos_token_id
    added = tokenizer("a")["input_ids"].count(bos)  # 1, but 0 for GPT-2's kind
    example, _ = tokenise_row([("Tom. ", False), ("Yes.", True)], tokenizer)
    assert example.ids[:-1].count(bos) == added
    written, _ = tokenise_row([(tokenizer.bos_token + "Tom. ", False), ("Yes.", True)], tokenizer)
    assert written.ids[:-1].count(bos) == 1
    chat, _ = tokenise_row([("Tom. ", False), ("Yes.", True)], tokenizer, special=True)
    assert chat.ids[:-1].count(bos) == 0


def test_a_doubled_bos_is_a_notice():
    spans = [("<s><s>Tom. ", False), ("Yes.", True)]
    example, notices = tokenise_row(spans, sentencepiece(), special=True)
    assert example.ids.count(1) == 1
    assert notices == ["1 rows began with BOS twice; one is left out: a:1"]


def test_a_token_that_crosses_the_border_is_split_and_counted():
    """'un' + 'likely' is one token; generation sees 'un' alone."""
    gpt2 = byte_level()
    assert "Ġunlikely" in gpt2.tokenize("It is unlikely.")
    spans = [("It is un", False), ("likely.", True)]
    example, notices = tokenise_row(spans, gpt2)
    assert example.prompt == gpt2("It is un")["input_ids"] == prompt_ids([row(*spans)], gpt2)[0]
    assert learned_text(example, gpt2) == "likely.<|endoftext|>"
    assert "1 rows are tokenised in pieces" in notices[0]
    assert "end in a space" not in notices[0]
    _, notices = tokenise_row([("It is ", False), ("likely.", True)], gpt2)
    assert "1 of these prompts end in a space" in notices[0]


def test_pieces_get_no_space_of_their_own():
    """A SentencePiece tokenizer puts a space before any text; not before a later piece."""
    tokenizer = sentencepiece()
    example, notices = tokenise_row([("the", False), ("re it was.", True)], tokenizer)
    assert notices and tokenizer.decode(example.ids[1:-1]).strip() == "there it was."


def test_every_token_of_a_text_but_the_first_is_a_label(tokenizer):
    example, _ = tokenise_row([("Once upon a time.", True)], tokenizer, kind="text")
    assert example.learned == [False] + [True] * (len(example.ids) - 1)


def test_a_learned_prompt_is_learned_with_the_answer():
    example, _ = tokenise_row([("Hello there. ", True), ("Hi.", True)], byte_level())
    assert example.learned == [False] + [True] * (len(example.ids) - 1)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_eos_is_not_learned_twice(end):
    gpt2 = byte_level()
    gpt2.chat_template = chatml().replace("<|im_end|>", end)
    rows = [Row({"messages": [*TALK, *TALK]}, "a:1")]
    (example,), _ = tokenise(render(rows, DataConfig(path="a"), gpt2).rows, gpt2)
    expected = "Good day." + end + ("<|endoftext|>" if end == "<|im_end|>" else "")
    text = learned_text(example, gpt2)
    assert text.endswith(expected) and not text.endswith("<|endoftext|><|endoftext|>")
    assert text.count("Good day.") == 2
    assert "assistant\n" not in text and "Hi" not in text


def test_turns_of_a_conversation_are_masked_by_token(tokenizer):
    tokenizer.chat_template = chatml()
    rows = [Row({"messages": TALK * 3}, "a:1")]
    rendered = render(rows, DataConfig(path="a"), tokenizer).rows
    (example,), _ = tokenise(rendered, tokenizer)
    text = learned_text(example, tokenizer)
    assert text.count("Good day.") == 3 and "Hi" not in text
    assert example.prompt == prompt_ids(rendered, tokenizer)[0]


def test_no_end_token_is_an_error():
    with pytest.raises(DataError, match="no end-of-sequence token"):
        tokenise_row([("a", False), ("b", True)], wordpiece())


def test_rows_of_a_classifier_have_their_special_tokens():
    bert = wordpiece()
    rows = [RenderedRow("label", (TextSpan("good film", False),), False, label="b", where="a:1")]
    (tokens,) = ClassifierTokeniser(bert).tokens(rows)
    assert tokens.ids == bert("good film")["input_ids"] and tokens.runs == []
    assert tokens.ids[0] == bert.cls_token_id and tokens.ids[-1] == bert.sep_token_id


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", [wordpiece, sentencepiece, byte_level])
def test_texts_of_a_classifier_are_truncated_as_the_tokenizer_does(kind, side):
    tokenizer = kind()
    tokenizer.truncation_side = side
    for text in ("a film that is good beyond words", "bad"):
        ids = tokenizer(text)["input_ids"]
        for limit in range(3, len(ids)):
            expected = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
            assert truncate_classified(ids, limit, tokenizer) == expected


def test_characters_without_a_token_are_a_notice():
    _, notices = tokenise_row([("2 - 2 =", False), (" 4", True)], digits())
    assert notices[0].startswith("1 rows hold characters that the tokenizer cannot write")
    assert notices[0].endswith(": - 4 (a:1)")
    text = [("2 + 2 = ü中🙂", False), (" 4", True)]
    assert tokenise_row(text, sentencepiece())[1] == []


@pytest.mark.parametrize("extra", ["", "a"])
def test_added_tokens_are_seen_whatever_the_letters(extra):
    """The letter a has no token in many vocabularies."""
    own = digits(extra)
    example, notices = tokenise_row([("1+1=", False), ("2", True)], own)
    assert example.prompt == own("1+1=")["input_ids"] and notices == []
    both = digits(extra, behind="</s>")
    ids = both("1+2=3+0=3")["input_ids"]
    expected = both("1+2=3+0=3", truncation=True, max_length=6)["input_ids"]
    assert truncate_classified(ids, 6, both) == expected


@pytest.mark.parametrize("special", [True, False])
def test_a_doubled_bos_is_removed_from_the_prompt_as_in_training(special):
    own = sentencepiece()
    spans = [("<s><s>user: hi\n", False), ("yes", True)]
    example, notices = tokenise_row(spans, own, special=special)
    (prompt,) = prompt_ids([row(*spans, special=special)], own)
    assert example.ids[: len(prompt)] == prompt == example.prompt
    assert prompt[:2].count(own.bos_token_id) == 1 and "twice" in notices[0]


@pytest.mark.parametrize("answer", ["Ёлка", " two spaces", "\nx", "Hello you"])
def test_an_empty_prompt_has_no_token_of_the_answer(answer):
    own = sentencepiece()
    example, notices = tokenise_row([("", False), (answer, True)], own)
    assert example.prompt == [own.bos_token_id] and notices[1:] == []
    assert not any("border" in notice for notice in notices)


def test_ids_above_16_bits(tmp_path):
    """Few tokens, but with large ids."""
    digits(first=70_000).save_pretrained(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1+1=", "completion": "2"}\n' * 3)
    own = AutoTokenizer.from_pretrained(tmp_path)
    data = load_data(DataConfig(path=str(rows), validation=0), own, seed=0, max_length=None)
    assert max(data.train[0].ids) > 70_000
