"""Numeric answer match: the last number of the answer equals that of a reference.

A text with "####" before a number, as in GSM8K, gives the number behind the last one. Commas
between groups of three digits and a currency sign are ignored; 18, 18.0 and 1.8e1 are equal. A
decimal comma is not known: "2,5" has the numbers 2 and 5.

Source: Cobbe et al., "Training verifiers to solve math word problems", 2021, arXiv:2110.14168.
"""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from lorica.evaluation.task import Task, TaskScores

NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-−+])?"  # a sign, and no minus between two numbers
    r"[$€£¥]?"
    r"((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
    r"([eE][-+]?[0-9]+)?"
)
MARK = "####"


def last_number(text: str) -> Decimal | None:
    """The number that a text ends in; None: it has none."""
    before, mark, behind = text.rpartition(MARK)
    for part in (behind, before) if mark else (text,):
        matches = list(NUMBER.finditer(part))
        if matches:
            return _value(matches[-1])
    return None


def _value(match: re.Match[str]) -> Decimal | None:
    digits, exponent = match.groups()
    negative = match.group().startswith(("-", "−"))
    try:
        value = Decimal(digits.replace(",", "") + (exponent or ""))
    except InvalidOperation:  # an exponent beyond all bounds
        return None
    return value.copy_negate() if negative else value


class Numeric(Task, name="numeric"):
    needs = "a number"
    unread = "without a number"

    def can_score(self, reference: str) -> bool:
        return last_number(reference) is not None

    def score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> TaskScores:
        written = [last_number(answer) for answer in answers]
        wanted = [[last_number(text) for text in texts] for texts in references]
        pairs = zip(written, wanted, strict=True)
        return self.means([w is not None and w in own for w, own in pairs], written.count(None))
