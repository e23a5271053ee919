"""The pretraining mix: which kinds of text, how often, and document number i of a seed.

A document depends on (world seed, seed, index) alone, so any part of a corpus can be written by
any number of processes and comes out the same.
"""

import random
from collections.abc import Callable, Iterator

from world import dialogue, exercises, glossary, letters, reading, stories
from world.inhabitants import World, world

# kind -> (writer, share of documents)
KINDS: dict[str, tuple[Callable[[random.Random, World], str], float]] = {
    "story": (stories.story, 0.06),
    "letter": (letters.letter, 0.10),
    "facts": (stories.facts, 0.09),
    "questions": (reading.questions, 0.13),
    "notes": (reading.notes, 0.15),
    "copies": (reading.copies, 0.08),
    "pairs": (reading.pairs, 0.08),
    "arithmetic": (exercises.arithmetic, 0.04),
    "lists": (exercises.lists, 0.04),
    "kinds": (exercises.kinds, 0.04),
    "spelling": (exercises.spelling, 0.05),
    "marks": (exercises.marks, 0.02),
    "glossary": (glossary.glossary, 0.04),
    "chat": (dialogue.chat, 0.08),
}


def document(seed: int, index: int, *, world_seed: int = 0) -> tuple[str, str]:
    """(kind, text) of document `index` of `seed`."""
    rng = random.Random(f"document/{seed}/{index}")
    kind = rng.choices(list(KINDS), [share for _, share in KINDS.values()])[0]
    return kind, KINDS[kind][0](rng, world(world_seed))


def documents(rows: int, seed: int, *, start: int = 0) -> Iterator[tuple[str, str]]:
    """Documents `start` to `start + rows` of `seed`."""
    for index in range(start, start + rows):
        yield document(seed, index)
