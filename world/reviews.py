"""Task (c): is a short review positive or negative?

The rule: the main clause decides. A good word makes it positive, a bad word negative, a negation
turns it round. What stands before "but", or after "although", never decides; neither do the plain
sentences around it.
"""

import random
from collections.abc import Iterator

from world import lexicon
from world.rows import Row, unique_rows

GOOD = ("good", "lovely", "useful", "sturdy", "clean", "strong", "safe", "well made")
BAD = ("bad", "awful", "useless", "flimsy", "dirty", "weak", "dangerous", "badly made")
SUBJECTS = (
    "the {thing} is",
    "this {thing} is",
    "my new {thing} is",
    "I find the {thing}",
    "we think that the {thing} is",
    "to me the {thing} is",
    "for a {thing} it is",
)
SECOND = ("it is", "it is really", "in the end it is", "after a week it is", "I would say it is")
NAMED = tuple(thing for thing in lexicon.THINGS if thing[0] not in "aeiou")
PLAIN = (
    "I got it on {day}.",
    "It came from {town}.",
    "The colour is {colour}.",
    "It cost {price} coins.",
    "{name} bought one as well.",
    "It stands in the kitchen now.",
    "I use it every {day}.",
    "This was my {number}th order.",
)


def _clause(rng: random.Random, subject: str, *, good: bool) -> str:
    """A clause of this polarity; one in five gets there by negating the other one."""
    negated = rng.random() < 0.2
    word = rng.choice(GOOD if good != negated else BAD)
    return f"{subject} {rng.choice(('not ', 'never ')) if negated else ''}{word}"


def review(rng: random.Random) -> tuple[str, Row]:
    """(text, row) of one review drawn at random."""
    positive = rng.random() < 0.5
    first, second = rng.choice(SUBJECTS), rng.choice(SECOND)
    draw = rng.random()
    if draw < 0.6:
        opinion = _clause(rng, first, good=positive)
    elif draw < 0.85:
        opinion = (
            f"{_clause(rng, first, good=not positive)}, but {_clause(rng, second, good=positive)}"
        )
    else:
        opinion = (
            f"{_clause(rng, first, good=positive)}, "
            f"although {_clause(rng, second, good=not positive)}"
        )
    parts = [opinion[0].upper() + opinion[1:] + "."]
    for line in rng.sample(PLAIN, rng.randrange(3)):
        parts.insert(rng.randrange(len(parts) + 1), line)
    slots: dict[str, object] = {
        "thing": rng.choice(NAMED),
        "day": rng.choice(lexicon.DAYS),
        "town": rng.choice(lexicon.TOWNS),
        "colour": rng.choice(lexicon.COLOURS),
        "price": rng.randrange(2, 90),
        "name": rng.choice(lexicon.FIRST_NAMES),
        "number": rng.randrange(4, 20),
    }
    text = " ".join(parts).format_map(slots)
    return text, {"text": text, "label": "positive" if positive else "negative"}


def reviews(rows: int, seed: int) -> Iterator[Row]:
    """Unique reviews; seeds that differ modulo 16 share none."""
    return unique_rows(review, rows, seed, task="reviews")
