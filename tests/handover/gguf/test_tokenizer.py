"""Tokenizers as GGUF fields: the right name for how text is cut, or a refusal."""

import json

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers import pre_tokenizers as pre

from benchmarks.runtimes import tiny_tokenizers
from lorica.errors import BaseError
from lorica.handover.gguf.special_tokens import special_token_fields
from lorica.handover.gguf.spm import pieces, scores_of
from lorica.handover.gguf.tokenizer import tokenizer_fields


@pytest.mark.parametrize("kind", tiny_tokenizers.PATTERNS)
def test_the_pre_tokenizer_is_recognised(kind):
    tokenizer = tiny_tokenizers.byte_level(kind)
    fields, notices = tokenizer_fields(tokenizer, 450, "here")
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == kind
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))] == tokens[
        : len(tokenizer)
    ]
    assert types[:3] == [3, 3, 3] and types[3] == 1  # control, then words
    assert tokens[-1] == "[PAD449]" and types[-1] == 5
    assert all(len(merge.split(" ")) == 2 for merge in fields["tokenizer.ggml.merges"])
    assert len(notices) == {"smollm": 0, "tekken": 2}.get(kind, 0)


def test_an_unknown_way_to_cut_words_is_refused():
    tokenizer = tiny_tokenizers.byte_level("gpt-2")
    tokenizer.backend_tokenizer.pre_tokenizer = pre.Sequence(
        [pre.Punctuation(), pre.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(BaseError, match="none of llama"):
        tokenizer_fields(tokenizer, 450, "here")


def test_normalizers():
    tokenizer = tiny_tokenizers.byte_level("qwen2")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert any("NFC" in notice for notice in tokenizer_fields(tokenizer, 450, "here")[1])
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(BaseError, match="Lowercase"):
        tokenizer_fields(tokenizer, 450, "here")
    tokenizer = tiny_tokenizers.sentence_piece(prefix=False)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(BaseError, match="changes text"):
        tokenizer_fields(tokenizer, 450, "here")


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_pieces(prefix):
    tokenizer = tiny_tokenizers.sentence_piece(prefix=prefix)
    fields, notices = tokenizer_fields(tokenizer, len(tokenizer), "here")
    assert notices == []
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is prefix
    types = fields["tokenizer.ggml.token_type"]
    assert types[:4] == [2, 3, 3, 6] and types[-1] == 1
    scores = dict(
        zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"], strict=True)
    )
    assert scores["▁t"] > scores["▁th"] > scores["▁the"]


def test_merges_that_llama_cpp_does_not_follow_are_a_notice():
    """A token that no merge gives is joined by llama.cpp all the same."""
    assert pieces("abc", scores_of([("b", "c"), ("a", "b"), ("ab", "c")])) == ["abc"]
    tokenizer = tiny_tokenizers.sentence_piece(prefix=True)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [pair for pair in state["model"]["merges"] if "".join(pair) not in ("▁t", "▁th")]
    state["model"]["merges"] = merges
    own = Tokenizer.from_str(json.dumps(state))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>")
    _, notices = tokenizer_fields(tokenizer, len(tokenizer), "here")
    assert any("probe texts into other tokens" in notice for notice in notices)


def test_a_tokenizer_without_tokens_for_bytes():
    tokenizer = tiny_tokenizers.sentence_piece(prefix=True)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [token for token in state["model"]["vocab"] if not token.startswith("<0x")]
    state["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    own = Tokenizer.from_str(json.dumps(state))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>")
    _, notices = tokenizer_fields(tokenizer, len(tokenizer), "here")
    assert len(notices) == 1 and "lacks 256 tokens for single bytes" in notices[0]


def test_added_tokens_that_take_spaces_are_a_notice():
    tokenizer = tiny_tokenizers.byte_level("qwen2")
    tokenizer.add_tokens([AddedToken("<tool>", normalized=True), AddedToken("<m>", lstrip=True)])
    fields, notices = tokenizer_fields(tokenizer, 450, "here")
    assert notices == ["llama.cpp reads spaces beside <m> in a text otherwise than in training"]
    assert fields["tokenizer.ggml.token_type"][fields["tokenizer.ggml.tokens"].index("<tool>")] == 4
    tokenizer = tiny_tokenizers.sentence_piece(prefix=True)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=True)])
    _, notices = tokenizer_fields(tokenizer, 450, "here")
    assert "beside <tool> in" in notices[0]


def test_tokens_without_a_row_or_with_one_text_are_refused():
    tokenizer = tiny_tokenizers.byte_level("gpt-2")
    with pytest.raises(BaseError, match="has token 419, and the embedding has 400 rows"):
        tokenizer_fields(tokenizer, 400, "here")


def test_stop_tokens():
    tokenizer = tiny_tokenizers.byte_level("gpt-2")
    end, turn = 0, 2
    fields, notices = special_token_fields(tokenizer, {turn, end})
    assert fields["tokenizer.ggml.eos_token_id"] == turn
    assert fields["tokenizer.ggml.eot_token_id"] == end and notices == []
    assert fields["tokenizer.ggml.add_bos_token"] is False
    _, notices = special_token_fields(tokenizer, {turn})
    assert any("also ends an answer at <|endoftext|>" in notice for notice in notices)
    _, notices = special_token_fields(tokenizer, {turn, 10, 11, 12})
    assert any("does not end at" in notice for notice in notices)
    with_bos = tiny_tokenizers.sentence_piece(prefix=True)
    fields, _ = special_token_fields(with_bos, {2})
    assert fields["tokenizer.ggml.bos_token_id"] == 1
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_eos_token"] is False
