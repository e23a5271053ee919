"""Made-up words with meanings that hold for one document only.

The reader must look the meaning up and put words together from syllables it has rarely seen in
this order. The three languages of the translation task share no word with these.
"""

import random

from world import lexicon
from world.inhabitants import World
from world.translation import words

_ONSETS = (*"bcdfghjklmnprstvwzxy", "th", "sh", "gh", "kw", "ts", "qu", "zh", "dr", "kv", "gl")
_VOWELS = (*"aeiou", "ai", "au", "ou")
_CLOSINGS = (*("",) * 6, *"klmnrstxqfgbh", "th", "ng")
_TAKEN = words()


def made_up_word(rng: random.Random) -> str:
    """One to three syllables; never a word of the translation task."""
    while True:
        count = rng.choice((1, 2, 2, 3))
        parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count)]
        word = "".join(parts) + rng.choice(_CLOSINGS)
        if len(word) > 2 and word not in _TAKEN:
            return word


def glossary(rng: random.Random, world: World) -> str:
    """A word list, then words and phrases turned there and back."""
    size = rng.randrange(3, 8)
    pool = lexicon.COLOURS + lexicon.FOODS + lexicon.ANIMALS + tuple(lexicon.THINGS)
    meanings = rng.sample(pool, size)
    strange = [made_up_word(rng) for _ in meanings]
    pairs = list(zip(strange, meanings, strict=True))
    layout = rng.choice(("{} means {}", '"{}" is {}', "{}: {}", "{} = {}", "{} ({})"))
    told = rng.choice(("; ", ", ", "\n")).join(layout.format(*pair) for pair in pairs)
    lines = ["Words: " + told]
    for _ in range(rng.randrange(1, 5)):
        chosen = rng.sample(pairs, rng.randrange(1, min(size, 5)))
        ours, theirs = " ".join(b for _, b in chosen), " ".join(a for a, _ in chosen)
        back = " ".join(a for a, _ in reversed(chosen))
        lines.append(
            rng.choice(
                (
                    f"{ours} => {theirs}",
                    f"{theirs} => {ours}",
                    f"What is {ours}? {theirs}",
                    f"What is {theirs}? {ours}",
                    f"{ours} => (backwards) {back}",
                )
            )
        )
    return "\n".join(lines) + "\n"
