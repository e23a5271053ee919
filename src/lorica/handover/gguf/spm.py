"""llama.cpp's tokenizer of SentencePiece's kind, to compare it with the model's own.

It joins the neighbours whose text together is the token of the highest score, until no two
neighbours are a token. A BPE tokenizer joins by its list of merges. With the first merge's place as
score the two agree wherever a token has one way of being joined, or all of them, as in tokenizers
that SentencePiece trained.
"""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

SPACE = "▁"


def scores_of(merges: list[tuple[str, str]]) -> dict[str, float]:
    """Token -> minus the place of the first merge that gives it."""
    scores: dict[str, float] = {}
    for place, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(place))
    return scores


def pieces(text: str, scores: Mapping[str, float]) -> list[str]:
    """The pieces that llama.cpp joins the characters of `text` to.

    scores: of every token that is not a single character.
    """
    symbols = list(text)
    after = list(range(1, len(symbols) + 1))
    before = list(range(-1, len(symbols) - 1))
    queue: list[tuple[float, int, str]] = []

    def pair(left: int) -> tuple[float, int, str] | None:
        right = after[left]
        joined = symbols[left] + symbols[right] if right < len(symbols) else ""
        return (-scores[joined], left, joined) if joined in scores else None

    queue = [joinable for i in range(len(symbols)) if (joinable := pair(i)) is not None]
    heapify(queue)
    while queue:
        _, left, joined = heappop(queue)
        right = after[left]
        if right >= len(symbols) or not symbols[left] or symbols[left] + symbols[right] != joined:
            continue
        symbols[left], symbols[right], after[left] = joined, "", after[right]
        if after[left] < len(symbols):
            before[after[left]] = left
        for start in (before[left], left):
            if start >= 0 and (new := pair(start)) is not None:
                heappush(queue, new)
    return [symbol for symbol in symbols if symbol]
