"""Small tokenizers of the kinds that models have, trained on a few lines.

The regular expressions are those of the models' own tokenizer.json files.
"""

from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

from lorica.handover.gguf.pre_tokenizers import PROBES, RARE

WORDS = (
    "Once upon a time there was a little girl. Lily and her mom went to the big park. They saw "
    "a red ball and a dog. Tom had many big red balls and he liked milk and bones. The cat ran. "
)
TEXTS = [
    *PROBES,
    *RARE.values(),
    WORDS,
    "the then there these that than thank 10 100 1000 I'll we'll it's  \n\n",
]
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?"
    r"[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {  # llama.cpp's name -> the model's pattern, whether it ignores merges
    "gpt-2": (None, False),
    "smollm": ("digits", False),
    "llama-bpe": (_LLAMA3, True),
    "smaug-bpe": (_LLAMA3, False),
    "qwen2": (_LLAMA3.replace("{1,3}", ""), False),
    "tekken": (_TEKKEN, True),
}


def byte_level(kind: str, size: int = 420) -> Any:
    """A byte-level BPE tokenizer that cuts words as `kind` of PATTERNS."""
    pattern, ignore_merges = PATTERNS[kind]
    own = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if pattern is None:
        own.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    elif pattern == "digits":
        own.pre_tokenizer = pre.Sequence(  # type: ignore[assignment]
            [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
        )
    else:
        split = pre.Split(Regex(pattern), "isolated")
        last = pre.ByteLevel(add_prefix_space=False, use_regex=False)
        own.pre_tokenizer = pre.Sequence([split, last])  # type: ignore[assignment]
    own.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator(TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def sentence_piece(*, prefix: bool) -> Any:
    """BPE over characters with every merge that its vocabulary allows, as SentencePiece has it.

    prefix: a space is put before every text (Llama 2), or none (Gemma).
    """
    words = ["▁the", "▁then", "▁there", "▁red", "▁ball", "▁it", "ing", "▁▁", "▁▁▁", "ll", "▁we"]
    words = sorted({word[:i] for word in words for i in range(2, len(word) + 1)}, key=len)
    letters = sorted(set("▁" + "".join(WORDS.split()) + "".join(words)))
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: i for i, token in enumerate([*special, *words, *letters])}
    merges = [
        (word[:i], word[i:])
        for word in words
        for i in range(1, len(word))
        if word[:i] in vocabulary and word[i:] in vocabulary
    ]
    own = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    steps = [normalizers.Prepend("▁")] if prefix else []
    own.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [*steps, normalizers.Replace(" ", "▁")]
    )
    if not prefix:
        own.pre_tokenizer = pre.Split(" ", "merged_with_previous")  # type: ignore[assignment]
    own.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    own.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
