"""Samples side by side: equal answers once, words marked that the reference does not have."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from lorica.compare.report.text import shortened, visible
from lorica.errors import counted

WORDS = re.compile(r"\s+|\w+|[^\w\s]")
MAX_WORDS = 1000
"""Of a text that is compared word by word; of a longer one the rest counts as different."""


@dataclass(frozen=True)
class Answer:
    """names: who gave it. runs: its text in pieces, each with whether it differs."""

    names: Sequence[tuple[int, str]]
    runs: Sequence[tuple[str, bool]]
    summary: str
    is_reference: bool


@dataclass(frozen=True)
class Sample:
    prompt: str
    reference: str
    answers: Sequence[Answer]


def sample(
    prompt: str, reference: str, answers: Sequence[tuple[tuple[int, str], str]], most: int
) -> Sample:
    """answers: ((series, name), text), in the order of the page. most: characters of a text."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name, text in answers:
        groups.setdefault(text, []).append(name)
    right = [text for text in groups if text.strip() == reference.strip()]
    order = [*right, *(text for text in groups if text not in right)]
    return Sample(
        _cut(prompt, most),
        _cut(reference, most),
        [_answer(groups[text], text, reference, most) for text in order],
    )


def _answer(names: list[tuple[int, str]], text: str, reference: str, most: int) -> Answer:
    if text.strip() == reference.strip():
        return Answer(names, [(_cut(text, most), False)], "as the reference", True)
    if not text.strip():
        return Answer(names, [], "empty", False)
    runs, differing, missing = compare(_cut(text, most), _cut(reference, most))
    parts = []
    if differing:
        parts.append(f"{counted(differing, 'word')} differ{'s' if differing == 1 else ''}")
    if missing:
        parts.append(f"{counted(missing, 'word')} of the reference missing")
    return Answer(names, runs, ", ".join(parts) or "other signs or spaces", False)


def compare(text: str, reference: str) -> tuple[list[tuple[str, bool]], int, int]:
    """(runs, words of `text` that differ, words of `reference` missing beyond those)."""
    ours, theirs = WORDS.findall(text), WORDS.findall(reference)
    rest, ours = ours[MAX_WORDS:], ours[:MAX_WORDS]
    flags, missing = [False] * len(ours), 0
    matcher = SequenceMatcher(None, ours, theirs[:MAX_WORDS], autojunk=False)
    for kind, start, end, from_, to in matcher.get_opcodes():
        if kind != "equal":
            flags[start:end] = [True] * (end - start)
            missing += sum(map(_is_word, theirs[from_:to]))
    ours, flags = ours + rest, flags + [True] * len(rest)
    differing = sum(flag and _is_word(word) for word, flag in zip(ours, flags, strict=True))
    return _runs(ours, flags), differing, max(0, missing - differing)


def _is_word(text: str) -> bool:
    """Whether it is neither space nor a sign."""
    return bool(re.match(r"\w", text))


def _runs(words: Sequence[str], flags: Sequence[bool]) -> list[tuple[str, bool]]:
    """Neighbours of one kind joined. A space is marked between two marked words alone."""
    runs: list[tuple[str, bool]] = []
    for n, (word, flag) in enumerate(zip(words, flags, strict=True)):
        if word.isspace():
            flag = 0 < n < len(words) - 1 and flags[n - 1] and flags[n + 1]
        if runs and runs[-1][1] == flag:
            runs[-1] = (runs[-1][0] + word, flag)
        else:
            runs.append((word, flag))
    return runs


def _cut(text: str, most: int) -> str:
    return shortened(visible(text), most)
