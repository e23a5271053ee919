"""What is wrong with the answers of tokenised rows: empty ones, and different ones to one prompt.

The answer of a row is its last range of label tokens, or its class. What stands before it, and the
condition, is its prompt. Rows of plain text have none.
"""

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorica.data.token_store import TokenStore

LEAST_BYTES, MOST_BYTES = 4_000, 200_000
DIGEST_BYTES = 16
DIGEST = f"S{DIGEST_BYTES}"
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


def answer_ranges(store: TokenStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start of the row, start of the answer, its end) of each row, in ids: each (rows,).

    An empty range at the end of the row: no answer.
    """
    starts, stops = store.arrays["starts"][:-1], store.arrays["starts"][1:]
    runs = store.arrays["runs"]
    if not len(runs):
        return starts, stops, stops
    run = np.searchsorted(runs[:, 0], stops) - 1  # the last range that begins before the end
    has_answer = (run >= 0) & (runs[run, 0] >= starts)
    begins, ends = (np.where(has_answer, runs[run, side], stops) for side in (0, 1))
    return starts, begins, ends


def _conflicting(store: TokenStore) -> tuple[int, int, str]:
    """(prompts with several different answers, rows that have them, where the first stands)."""
    rows, pairs = _prompts_and_answers(store)
    prompts = pairs.view(DIGEST).reshape(-1, 2)[:, 0]
    different = np.unique(pairs).view(DIGEST).reshape(-1, 2)[:, 0]
    names, answers = np.unique(different, return_counts=True)
    several = names[answers > 1]
    if not len(several):
        return 0, 0, ""
    has_several = np.isin(prompts, several)
    first = int(rows[np.argmax(has_several)])
    return len(several), int(has_several.sum()), store.where(first)


def _prompts_and_answers(store: TokenStore) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the rows with a prompt and an answer, digests of both as one text: S32)."""
    ids, labels, conditions = (store.arrays[key] for key in ("ids", "label", "condition"))
    classes = store.kind == "label"
    starts, begins, ends = answer_ranges(store)
    prompt_ends = ends if classes else begins
    has_answer = classes | (ends > begins)
    rows = np.flatnonzero(has_answer & (prompt_ends - starts >= 2))  # 1: at most BOS
    digests = bytearray()
    for row in rows:  # no list of all rows: there may be millions
        prompt = ids[starts[row] : prompt_ends[row]].tobytes()
        answer = labels[row] if classes else ids[begins[row] : ends[row]]
        digests += _digest(conditions[row].tobytes() + prompt) + _digest(answer.tobytes())
    return rows, np.frombuffer(digests, f"S{2 * DIGEST_BYTES}")


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _count_empty(store: TokenStore, tokenizer: Any) -> int:
    """Rows without label tokens, or whose answer is only an end of turn."""
    ids = store.arrays["ids"]
    _, begins, ends = answer_ranges(store)
    lengths = ends - begins
    empty = int((lengths == 0).sum())
    for length in range(1, BLANK_TOKENS + 1):
        at = begins[lengths == length]
        answers, counts = np.unique(
            ids[at[:, None] + np.arange(length)], axis=0, return_counts=True
        )
        for answer, count in zip(answers, counts, strict=True):
            empty += int(count) * (not _text(answer, tokenizer).strip())
    return empty


def _text(ids: np.ndarray, tokenizer: Any) -> str:
    """The decoded ids without special tokens (an end of turn)."""
    special = set(tokenizer.all_special_ids)
    return tokenizer.decode([i for i in ids.tolist() if i not in special])


def _structure(store: TokenStore, tokenizer: Any) -> float | None:
    ids, pairs, size = store.arrays["ids"], [], 0
    for start, begin, end in zip(*answer_ranges(store), strict=True):
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
