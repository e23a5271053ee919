"""What is wrong with the answers of tokenised rows: empty ones, and different ones to one prompt.

The answer of a row is its last range of label tokens, or its class. What stands before it, and the
condition, is its prompt. Rows of plain text have none.
"""

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lorica.data.token_store import TokenStore

LEAST_BYTES, MOST_BYTES = 4_000, 200_000
BLANK_TOKENS = 8  # a longer answer is not decoded to see whether it is blank


@dataclass(frozen=True)
class Answers:
    """empty: rows whose answer has no text. prompts: those with several different answers; rows:
    that have such prompts. first: where the first of them stands.

    structure: see the function of this name: below 0.9 for language, above 1 for random texts.
    """

    empty: int = 0
    prompts: int = 0
    rows: int = 0
    first: str = ""
    structure: float | None = None


def check_answers(store: TokenStore, tokenizer: Any) -> Answers:
    """What is wrong with the answers of a file."""
    if store.kind == "text":
        return Answers()
    prompts, rows, first = _conflicting(store)
    if store.kind == "label":
        return Answers(0, prompts, rows, first)
    return Answers(
        _count_empty(store, tokenizer), prompts, rows, first, _structure(store, tokenizer)
    )


def answer_ranges(store: TokenStore) -> Iterator[tuple[int, int, int]]:
    """(start of the row, start of the answer, its end), in ids; an empty range: no answer."""
    starts, runs = store.arrays["starts"].tolist(), store.arrays["runs"]
    ends = runs[:, 1].tolist()
    begins = runs[:, 0].tolist()
    number = 0
    for start, stop in pairwise(starts):
        last = -1
        while number < len(ends) and begins[number] < stop:
            last, number = number, number + 1
        yield (start, begins[last], ends[last]) if last >= 0 else (start, stop, stop)


def _conflicting(store: TokenStore) -> tuple[int, int, str]:
    """(prompts with several different answers, rows that have them, where the first stands)."""
    ids, labels, conditions = (store.arrays[key] for key in ("ids", "label", "condition"))
    classes = store.kind == "label"
    answers: dict[bytes, set[bytes]] = {}
    keys: list[bytes] = []
    for row, (start, begin, end) in enumerate(answer_ranges(store)):
        if end == begin and not classes:
            continue
        prompt = ids[start : end if classes else begin]
        if len(prompt) < 2:
            continue  # at most BOS: the whole row is learned
        condition = int(conditions[row]).to_bytes(4, "little", signed=True)
        key = _digest(condition + prompt.tobytes())
        answer = int(labels[row]).to_bytes(4, "little") if classes else ids[begin:end].tobytes()
        answers.setdefault(key, set()).add(_digest(answer))
        keys.append(key)
    several = {key for key, different in answers.items() if len(different) > 1}
    if not several:
        return 0, 0, ""
    place = next(i for i, key in enumerate(keys) if key in several)
    return len(several), sum(key in several for key in keys), store.where(place)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _count_empty(store: TokenStore, tokenizer: Any) -> int:
    """Rows without label tokens, or whose answer is only an end of turn."""
    ids = store.arrays["ids"]
    blank: dict[bytes, bool] = {}
    empty = 0
    for _, begin, end in answer_ranges(store):
        answer = ids[begin:end]
        if len(answer) > BLANK_TOKENS:
            continue
        key = answer.tobytes()
        if key not in blank:
            blank[key] = not _text(answer, tokenizer).strip()
        empty += blank[key]
    return empty


def _text(ids: np.ndarray, tokenizer: Any) -> str:
    """The decoded ids without special tokens (an end of turn)."""
    special = set(tokenizer.all_special_ids)
    return tokenizer.decode([i for i in ids.tolist() if i not in special])


def _structure(store: TokenStore, tokenizer: Any) -> float | None:
    ids, pairs, size = store.arrays["ids"], [], 0
    for start, begin, end in answer_ranges(store):
        answer = _text(ids[begin:end], tokenizer).strip()
        pairs.append((_text(ids[start:begin], tokenizer), answer))
        size += len(answer)
        if size > MOST_BYTES:
            break
    return structure(pairs)


def structure(pairs: Sequence[tuple[str, str]]) -> float | None:
    """What the answers take in compressed text, over the entropy of their bytes taken alone.

    pairs: (prompt, answer). The prompts are compressed with the answers, and what they take alone
    is subtracted, so that what an answer copies from its prompt costs little. None: the answers
    are too short, or have no letters: numbers may be computed from the prompt.
    """
    answers = "".join(answer for _, answer in pairs).encode()
    if len(answers) < LEAST_BYTES or not any(chr(byte).isalpha() for byte in answers):
        return None
    counts = Counter(answers).values()
    entropy = -sum(n / len(answers) * math.log2(n / len(answers)) for n in counts)
    if entropy == 0:
        return None
    both = zlib.compress("".join(prompt + answer for prompt, answer in pairs).encode(), 9)
    alone = zlib.compress("".join(prompt for prompt, _ in pairs).encode(), 9)
    return 8 * (len(both) - len(alone)) / len(answers) / entropy
