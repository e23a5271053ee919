"""Text of growing rows: the pieces are the whole text, and each is final when it is given."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lorica.base import load as loading
from lorica.generation.stops import Stops
from lorica.generation.text_stream import BROKEN, MAX_PENDING
from tests import small_base
from tests.base import architectures

TEXT = st.text(st.sampled_from("ab ?é好🙂🏳‍\n'\u200d.T"), max_size=30)


@pytest.fixture(params=["bytes", "fallback", "bundled", "gpt2", "bert-base-uncased"])
def own(request):
    """A tokenizer. bytes: BPE over bytes. fallback: bytes for characters it does not know."""
    if request.param == "bundled":
        return loading.load("bundled").tokenizer
    if request.param in ("gpt2", "bert-base-uncased"):
        shared = request.getfixturevalue("shared")
        return AutoTokenizer.from_pretrained(shared / "data/tokenizers" / request.param)
    return small_base.tokenizer() if request.param == "fallback" else architectures.tokenizer()


def pieces(stops: Stops, prompt: list[int], new: list[int]) -> list[str]:
    stream, given_text = stops.stream(prompt), []
    for token in new:
        stream.push(token)
        given_text.append(stream.take())
    stream.end()
    return [*given_text, stream.take()]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=TEXT, cut=st.integers(1, 40), strings=st.lists(TEXT.filter(bool), max_size=2))
def check_texts(own, text: str, cut: int, strings: list[str]) -> None:
    ids = own.encode("The cat " + text, add_special_tokens=False)
    prompt, new = ids[:cut], ids[cut:]
    stops = Stops(own, strings=tuple(strings))
    got = "".join(pieces(stops, prompt, new))
    assert got == stops.text(prompt, new)
    before, whole = (own.decode(i, clean_up_tokenization_spaces=False) for i in (prompt, ids))
    if BROKEN not in whole and whole.startswith(before):
        ends = [at for s in strings if (at := whole[len(before) :].find(s)) >= 0]
        assert got == whole[len(before) :][: min(ends, default=None)]


def test_the_pieces_are_the_text_of_the_whole(own):
    check_texts(own)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 60))
def check_tokens(own, seed: int, count: int) -> None:
    draw = random.Random(seed)
    ids = [draw.randrange(3, min(len(own), 400)) for _ in range(count + 3)]
    stops = Stops(own)
    assert "".join(pieces(stops, ids[:3], ids[3:])) == stops.text(ids[:3], ids[3:])


def test_broken_bytes_have_one_text_too(own):
    """Most of the first tokens are single bytes: random ones are rarely characters."""
    check_tokens(own)


def test_a_character_is_given_when_its_last_byte_is_there(own):
    if own.unk_token_id in own.encode("🙂"):
        pytest.skip("it has no tokens for bytes")
    prompt = own.encode("The cat", add_special_tokens=False)
    new = own.encode("The cat🙂🙂", add_special_tokens=False)[len(prompt) :]
    got = pieces(Stops(own), prompt, new)
    assert BROKEN not in "".join(got)
    assert [piece.strip() for piece in got if piece.strip()] == ["🙂", "🙂"]


def test_a_text_that_is_cut_inside_a_character_keeps_those_before_it():
    """The tokenizer's own decoding gives up the whole row of bytes."""
    own = small_base.tokenizer()
    prompt = own.encode("The cat", add_special_tokens=False)
    new = own.encode("The cat🙂🙂", add_special_tokens=False)[len(prompt) : -1]
    assert Stops(own).text(prompt, new).startswith("🙂" + BROKEN)
    assert "🙂" not in own.decode(prompt + new)


def test_what_may_become_a_stop_string_is_held_back():
    own = architectures.tokenizer()
    prompt = own.encode("The", add_special_tokens=False)
    new = own.encode("The ab abc abd", add_special_tokens=False)[len(prompt) :]
    stops = Stops(own, strings=("abd", "never"))
    got = pieces(stops, prompt, new)
    assert "".join(got) == " ab abc "
    assert stops.text(prompt, new) == " ab abc "
    so_far = ""
    for i, piece in enumerate(got[:-1]):
        so_far += piece
        if not own.decode(new[: i + 1]).endswith(("a", "ab", "abd")):
            assert so_far == own.decode(new[: i + 1])


def test_each_token_is_decoded_a_bounded_number_of_times(own):
    """Also where a row is nothing but broken bytes."""
    decoded = 0

    class Counting:
        def decode(self, ids, **options):
            nonlocal decoded
            decoded += len(ids)
            return own.decode(ids, **options)

    words = own.encode("The cat sat on the mat. " * 40, add_special_tokens=False)
    for new in (words, [200] * 400):
        decoded = 0
        pieces(Stops(Counting()), words[:4], new)
        assert decoded <= len(new) * 2 * MAX_PENDING


def test_a_token_is_final_once_its_whole_text_is_given(own):
    """Neither while it may become a stop string, nor if one cuts it off."""
    new = own.encode("The cat sat on the mat. The end", add_special_tokens=False)
    for stop in ("sat", " the", "at. T", "none", "ndx"):
        stream, text = Stops(own, strings=(stop,)).stream([]), ""
        for count, token in enumerate(new, start=1):
            stream.push(token)
            if count == len(new):
                stream.end()
            text += stream.take()
            assert text.startswith(own.decode(new[: stream.final_tokens]))
        assert stream.has_stopped == (stop in own.decode(new))
        rest = own.decode(new[: stream.final_tokens + 1])
        assert stream.final_tokens == len(new) or not text.startswith(rest)
