"""The number of tokens before a position is that of tokenising the text before it."""

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorica.data.token_boundaries import TokenBoundaries
from tests.base.architectures import tokenizer as bytewise

LETTERS = "aaabbbccc   dé\n"


def bpe(seed: int, *, byte_fallback: bool, front: str, fuse_unk: bool) -> Tokenizer:
    """A BPE tokenizer with random merges and without pre-tokenizer; some letters are unknown."""
    draw = random.Random(seed)
    tokens = ["▁", "a", "b", "c", "<unk>"] + ["<e>"] * bool(seed % 2)
    if byte_fallback:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    merges: list[tuple[str, str]] = []
    symbols = ["▁", "a", "b", "c"]
    for _ in range(12):
        pair = draw.choice(symbols), draw.choice(symbols)
        if pair not in merges:
            merges.append(pair)
            symbols.append("".join(pair))
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, *symbols]))}
    made = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token="<unk>",
            byte_fallback=byte_fallback,
            fuse_unk=fuse_unk,
        )
    )
    steps: list[Any] = [normalizers.Prepend(front)] if front else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])  # type: ignore[assignment]
    return made


def fast(made: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


class Stub(SimpleNamespace):
    def __len__(self) -> int:
        return self.size


def boundaries(tokenizer: Any) -> TokenBoundaries:
    def encode(texts: list[str]) -> list[list[int]]:
        return [tokenizer.encode(text, add_special_tokens=False) for text in texts]

    return TokenBoundaries(tokenizer, encode)


def by_hand(made: Any, text: str, ids: list[int], place: int) -> int | None:
    before = made.encode(text[:place], add_special_tokens=False)
    before = before if isinstance(before, list) else before.ids
    return len(before) if ids[: len(before)] == before else None


@pytest.mark.parametrize("seed", range(24))
def test_counts_are_those_of_the_text_before(seed):
    made = bpe(seed, byte_fallback=seed % 3 > 0, front="▁" * (seed % 4 > 0), fuse_unk=seed % 5 > 1)
    draw, borders, known = random.Random(seed), boundaries(fast(made)), 0
    texts = ["".join(draw.choices(LETTERS, k=draw.randint(2, 30))) for _ in range(60)]
    ids = [made.encode(text, add_special_tokens=False).ids for text in texts]
    places = [sorted(draw.sample(range(len(text)), min(3, len(text)))) for text in texts]
    counts = borders.tokens_before(texts, ids, places)
    for text, own, at, counted in zip(texts, ids, places, counts, strict=True):
        if counted is not None:
            known += 1
            assert counted == [by_hand(made, text, own, place) for place in at], text
    assert known > 10


ODD: dict[str, dict[str, Any]] = {
    "words": {"pre_tokenizer": {"type": "Whitespace"}},
    "no unknown token": {"model": {"unk_token": None, "byte_fallback": False}},
    "bytes that are missing": {"model": {"unk_token": None, "vocab": {"a": 0, "<0x41>": 1}}},
    "merged bytes": {"model": {"merges": [["a", "b"], ["<0xC3>", "<0xA9>"]]}},
    "an id far away": {"model": {"vocab": {"a": 2**31}}},
    "no vocabulary": {"model": {"vocab": {}}, "added_tokens": []},
    "another model": {"model": {"type": "Unigram"}},
    "dropout": {"model": {"dropout": 0.1}},
    "suffix": {"model": {"end_of_word_suffix": "</w>"}},
    "prefix": {"model": {"continuing_subword_prefix": "##"}},
    "whole words": {"model": {"ignore_merges": True}},
    "an added word": {
        "added_tokens": [{"id": 1, "content": "ab", "single_word": True, "normalized": False}]
    },
    "a normalised word": {
        "added_tokens": [{"id": 1, "content": "ab", "single_word": False, "normalized": True}]
    },
    "lower case": {"normalizer": {"type": "Lowercase"}},
    "a longer text": {
        "normalizer": {"type": "Replace", "pattern": {"String": "b"}, "content": "bb"}
    },
    "a pattern": {"normalizer": {"type": "Replace", "pattern": {"Regex": "b"}, "content": "c"}},
}


@pytest.mark.parametrize("odd", ODD)
def test_other_tokenizers_are_not_counted(odd):
    """Tokens that may depend on later text, or whose lengths are unknown."""
    parts = json.loads(bpe(1, byte_fallback=True, front="▁", fuse_unk=True).to_str())
    for key, value in ODD[odd].items():
        parts[key] = {**parts[key], **value} if key == "model" else value
    backend = SimpleNamespace(to_str=lambda: json.dumps(parts))
    made = Stub(backend_tokenizer=backend, size=len(parts["model"]["vocab"]))
    assert boundaries(made).tokens_before(["ab c"], [[1, 2, 0, 3]], [[2]]) == [None]


def test_texts_with_added_tokens_are_not_counted():
    made = bpe(2, byte_fallback=True, front="▁", fuse_unk=True)
    made.add_special_tokens(["<s>"])
    text = "ab<s>c"
    ids = made.encode(text, add_special_tokens=False).ids
    assert boundaries(fast(made)).tokens_before([text, "", text], [ids, [], ids], [[3], [], [2]])[
        :2
    ] == [
        None,
        None,
    ]


MARKS = ["<u>", "<a>", "<a>x", "</s>"]


@pytest.mark.parametrize("front", [None, "first", "always"])
@pytest.mark.parametrize("pre", ["words", "digits", "none"])
def test_counts_behind_added_tokens_are_those_of_the_text_before(front, pre):
    """With any tokenizer: what follows an added token is tokenised by itself."""
    made = bpe(7, byte_fallback=True, front="", fuse_unk=True)
    if pre != "none":
        splitter = pre_tokenizers.Whitespace() if pre == "words" else pre_tokenizers.Digits(True)
        made.pre_tokenizer = splitter  # type: ignore[assignment]
    if front:
        made.normalizer = None  # type: ignore[assignment]
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=front)  # type: ignore
    made.add_special_tokens(MARKS)
    draw, known = random.Random(pre), 0
    texts = ["".join(draw.choices([*LETTERS, *MARKS], k=12)) for _ in range(200)]
    ids = [made.encode(text, add_special_tokens=False).ids for text in texts]
    places = [sorted(draw.sample(range(len(text)), 3)) for text in texts]
    counts = boundaries(fast(made)).tokens_before(texts, ids, places)
    for text, own, at, counted in zip(texts, ids, places, counts, strict=True):
        if counted is not None:
            known += 1
            assert counted == [by_hand(made, text, own, place) for place in at], text
    assert known > 20


def test_a_tokenizer_that_splits_into_words_is_not_counted():
    assert boundaries(bytewise()).tokens_before(["ab"], [[1, 2]], [[1]]) == [None]


def test_real_tokenizers(shared):
    from transformers import AutoTokenizer

    known = 0
    books = ("wikitext-2/valid.txt", "tinyshakespeare/input.txt")  # the first has "<unk>" in it
    corpus = "".join((shared / "data/text" / b).read_text(encoding="utf-8")[:60_000] for b in books)
    draw = random.Random(0)
    for folder in [*(shared / "data/tokenizers").iterdir(), shared / "data/models/stories260K"]:
        if not (folder / "tokenizer.json").is_file():
            continue
        own = AutoTokenizer.from_pretrained(folder)
        texts = [corpus[at : at + 300] for at in draw.sample(range(119_000), 200)]
        ids = [own.encode(t, add_special_tokens=False) for t in texts]
        places = [[draw.randrange(1, 299)] for _ in texts]
        counts = boundaries(own).tokens_before(texts, ids, places)
        for text, text_ids, (place,), counted in zip(texts, ids, places, counts, strict=True):
            if counted is not None:
                known += 1
                assert counted == [by_hand(own, text, text_ids, place)], (folder.name, text)
    assert known > 20
