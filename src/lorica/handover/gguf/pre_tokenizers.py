"""Which of llama.cpp's pre-tokenizers cuts text into words as a byte-level BPE tokenizer does.

A GGUF file holds the name of a pre-tokenizer, not its rules. Each one that is known here is built
from its regular expressions, and compared with the model's own on texts that tell them apart.
Names and expressions as in llama.cpp of November 2026 (src/llama-vocab.cpp).
"""

from dataclasses import dataclass
from typing import Any

from lorica.errors import BaseError

_CONTRACTION = "'(?:[sSdDmMtT]|[rR][eE]|[vV][eE]|[lL][lL])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER, _LOWER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"  # by ASCII letters alone
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """name: tokenizer.ggml.pre. patterns: text is cut by one after the other.

    ignores_merges: a word that is a token stays whole, whatever the merges are.
    """

    name: str
    patterns: tuple[str, ...]
    ignores_merges: bool = False


KNOWN = (
    PreTokenizer("gpt-2", (_GPT2,)),
    PreTokenizer("smollm", (r"\p{N}", _GPT2)),
    PreTokenizer("llama-bpe", (_CONTRACTION + _WORD + r"\p{N}{1,3}" + _REST,), True),
    PreTokenizer("smaug-bpe", (_CONTRACTION + _WORD + r"\p{N}{1,3}" + _REST,)),
    PreTokenizer("qwen2", (_CONTRACTION + _WORD + r"\p{N}" + _REST,)),
    PreTokenizer("tekken", (_TEKKEN,), True),
)
PROBES = (
    "Hello, world!  It's 2026: we've 12345 rows, 7 of them new.\n\n  def f(x):\n\treturn x ** 2",
    "I'LL say \"HE'S\" 'twas   three spaces, trailing   \n \t \r\n\n...!!?? --- ==>",
    "camelCase HTTPServer x1y22z333 3.14159 1,000,000 $5 50% a_b #tag @me path/to/file.py/\n/",
    "naïve café Größe Привет мир 你好世界 こんにちは 안녕하세요 שלום العربية",
    "🚀 (emoji) 👩‍👩‍👧 ✅✅ 🦙\u200d🌫️ —– “quotes” … ·",
)
RARE = {
    "numerals that are no digits (½, ², Ⅷ)": "½½ Ⅷ² ①②③ 1\u0660\u0661 x²³",
    "letters with combining marks (हिन्दी)": "हिन्दी ไทย cafe\u0301s",
    "capital letters beyond ASCII (ÉCOLE)": "ÉCOLE lÉtat мирМир",
}
"""What no pre-tokenizer is ruled out by."""


def pre_tokenizer_of(tokenizer: Any, ignores_merges: bool) -> tuple[PreTokenizer, list[str]]:
    """The pre-tokenizer of llama.cpp that cuts text as `tokenizer` (of the package tokenizers).

    Returns: it, and notices. Raises: BaseError if none does.
    """
    own = tokenizer.pre_tokenizer
    same = [
        known
        for known in KNOWN
        if known.ignores_merges == ignores_merges
        and all(_words(own, text) == _words(_built(known), text) for text in PROBES)
    ]
    if not same:
        raise BaseError(
            "the tokenizer cuts text into words as none of llama.cpp's pre-tokenizers that lorica "
            "knows does.",
            known=", ".join(known.name for known in KNOWN),
            fix="serve it with lorica serve or vLLM; convert_hf_to_gguf.py knows a few more",
        )
    chosen = same[0]
    built = _built(chosen)
    other = [what for what, text in RARE.items() if _words(own, text) != _words(built, text)]
    return chosen, [f"llama.cpp cuts {what} into other tokens than in training" for what in other]


def _built(known: PreTokenizer) -> Any:
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in known.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, to_bytes])


def _words(pre_tokenizer: Any, text: str) -> list[str]:
    return [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]
