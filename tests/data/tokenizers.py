"""Small tokenizers of the kinds that models have, built in the test."""

from string import ascii_lowercase

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.small_base import tokenizer as sentencepiece

TEXT = ["Tom has a dog. It is big.", "It is unlikely. It is likely.", "Hello there. Good day. Hi."]


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind: words of bytes; one special token, which it never adds."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    own.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    own.train_from_iterator(TEXT * 4, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=own, bos_token=end, eos_token=end, unk_token=end
    )


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's kind: [CLS] and [SEP] around a text, and no end-of-sequence token."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = ["a", "film", "that", "is", "good", "beyond", "words", "bad"]
    letters = [*ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]
    tokens = dict.fromkeys([*special, *words, *letters])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    own = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    own.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def digits(
    extra: str = "", behind: str = "", first: int = 2, **model: str
) -> PreTrainedTokenizerFast:
    """Digits with <s> before them, as for sums or DNA. It drops every other character.

    extra: more characters. behind: special tokens after a text. first: the id of the first digit.
    """
    vocabulary = {"<s>": 0, "</s>": 1} | {c: first + i for i, c in enumerate(extra + "0123+= ")}
    own = Tokenizer(models.BPE(vocab=vocabulary, merges=[], **model))
    own.add_special_tokens(["<s>", "</s>"])
    own.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"<s> $A {behind}".strip(), special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>")


__all__ = ["byte_level", "digits", "sentencepiece", "wordpiece"]
