"""Reading: passages made up on the spot, then questions that need them.

Nothing here can be known beforehand: names, codes, prices and labels are drawn per document, so
the only way to answer is to look back and copy. Some answers are instead a judgement over the
passage (its topic, the size of a thing), which teaches reading for meaning. Small-model
fine-tuning leans on both skills.
"""

import random
from dataclasses import dataclass

from world import lexicon
from world.glossary import made_up_word
from world.inhabitants import World


@dataclass(frozen=True)
class Clue:
    """A sentence with slots, and the (key, question, answer) triples that it settles."""

    text: str
    settles: tuple[tuple[str, str, str], ...]


CLUES = (
    Clue(
        "{name} bought a {thing} for {price} coins.",
        (
            ("buyer", "Who bought the {thing}?", "{name}"),
            ("thing", "What did {name} buy?", "{thing}"),
            ("price", "What did the {thing} cost?", "{price}"),
        ),
    ),
    Clue(
        "The code of the {thing} is {code}.",
        (
            ("code", "What is the code of the {thing}?", "{code}"),
            ("thing", "Which thing has the code {code}?", "{thing}"),
        ),
    ),
    Clue(
        "{name} ordered a {colour} {thing}; the order has the number {code}.",
        (
            ("order", "What is the number of the order of {name}?", "{code}"),
            ("product", "What did {name} order?", "{thing}"),
            ("colour", "Which colour is the {thing}?", "{colour}"),
        ),
    ),
    Clue(
        "Order {code} went to {name} in {town}.",
        (
            ("order", "Which order went to {name}?", "{code}"),
            ("town", "Where did order {code} go?", "{town}"),
            ("name", "Who got order {code}?", "{name}"),
        ),
    ),
    Clue(
        "The {colour} box labelled {code} holds {number} {food}.",
        (
            ("label", "What is the label of the {colour} box?", "{code}"),
            ("food", "What is in the box labelled {code}?", "{food}"),
            ("number", "How many {food} are in the box?", "{number}"),
        ),
    ),
    Clue(
        "{name} put the {thing} into the box labelled {code}.",
        (
            ("label", "Which box holds the {thing}?", "{code}"),
            ("thing", "What is in the box labelled {code}?", "{thing}"),
        ),
    ),
    Clue(
        "The old code was {code2}, but now it is {code}.",
        (
            ("code", "What is the code now?", "{code}"),
            ("old code", "What was the old code?", "{code2}"),
        ),
    ),
    Clue(
        "Not {code2} but {code} opens the {colour} door.",
        (("door", "What opens the {colour} door?", "{code}"),),
    ),
    Clue(
        "{name} lives at number {number} in {town}.",
        (
            ("name", "Who lives in {town}?", "{name}"),
            ("town", "Where does {name} live?", "{town}"),
            ("house", "Which number is the house of {name}?", "{number}"),
        ),
    ),
    Clue(
        "On {day} {name} will meet {name2} in {town}.",
        (
            ("day", "When will {name} meet {name2}?", "{day}"),
            ("friend", "Whom will {name} meet?", "{name2}"),
            ("place", "Where will they meet?", "{town}"),
        ),
    ),
    Clue(
        "{name} gave the {colour} {thing} to {name2}.",
        (
            ("giver", "Who gave the {thing} away?", "{name}"),
            ("owner", "Who has the {thing} now?", "{name2}"),
        ),
    ),
    Clue(
        "{name} wanted a {thing2} but took a {thing} instead.",
        (
            ("thing", "What did {name} take?", "{thing}"),
            ("wish", "What did {name} want?", "{thing2}"),
        ),
    ),
    Clue(
        "Train {code} leaves at {hour} for {town}.",
        (
            ("train", "Which train goes to {town}?", "{code}"),
            ("time", "When does train {code} leave?", "{hour}"),
        ),
    ),
    Clue(
        "The {animal} of {name} is called {pet}.",
        (
            ("pet", "What is the {animal} of {name} called?", "{pet}"),
            ("animal", "Which animal is {pet}?", "{animal}"),
        ),
    ),
    Clue(
        "My friend {name} has a {thing2}, and I have a {thing}.",
        (("mine", "What do I have?", "{thing}"), ("friend", "What is my friend called?", "{name}")),
    ),
    Clue(
        '{name} said: "The {thing} is in {town}."',
        (("speaker", "Who spoke?", "{name}"), ("thing", "Which thing is in {town}?", "{thing}")),
    ),
)

TOPICS = {
    "weather": (
        "It rained all day.",
        "The wind was strong this morning.",
        "Snow lay on the hills.",
        "A thick fog came up from the river.",
        "The sun was out until the evening.",
        "Dark clouds hung over the fields.",
        "There was thunder at night.",
    ),
    "music": (
        "The choir sang an old song.",
        "Someone played the flute.",
        "A drum beat slowly.",
        "The band needed a new singer.",
        "They danced to the tune.",
        "The piano stood in the hall.",
    ),
    "travel": (
        "The ship left the harbour.",
        "We took the long road over the hills.",
        "The tickets for the train were sold out.",
        "They packed for a trip to the sea.",
        "The bus went over the bridge.",
        "A map showed the way.",
    ),
    "sport": (
        "The race ended with a close finish.",
        "The team won by two goals.",
        "She ran faster than all the others.",
        "The match was a draw.",
        "He rowed every morning before school.",
        "The ball flew over the net.",
    ),
    "school": (
        "The lesson was about numbers.",
        "The children learned a poem by heart.",
        "The teacher wrote on the board.",
        "There was a test on Friday.",
        "They read a chapter of the book.",
        "The class drew a map of the world.",
    ),
    "animals": (
        "The fox slept under a bush.",
        "Two owls sat in the barn.",
        "The sheep walked to the stream.",
        "A bee flew from flower to flower.",
        "The horse did not want to leave the stable.",
        "The puppy barked at its tail.",
    ),
}
# What a passage says about a thing's size; with none of them the size is medium.
SIZES = {
    "small": (
        "It fits into a pocket.",
        "You can hold it between two fingers.",
        "It is no bigger than a coin.",
        "A mouse could carry it.",
        "It weighs next to nothing.",
    ),
    "large": (
        "It takes two people to carry it.",
        "It fills half of the room.",
        "It did not fit through the door.",
        "It is taller than a horse.",
        "A whole cart was needed for it.",
    ),
}
LAYOUTS = (
    ("{}: {}", "\n"),
    ("{}: {}", "; "),
    ("{} = {}", ", "),
    ("{} = {}", "\n"),
    ("{} - {}", "\n"),
    ("({}: {})", " "),
    ("[{}: {}]", " "),
    ("{} -> {}", "\n"),
    ("<{}> {}", "\n"),
    ('the {} is "{}"', ", "),
    ('{}: "{}"', "\n"),
    ("{}={}", "&"),
    ("'{}' is '{}'", "; "),
    ("* {}: {}", "\n"),
    ("{} | {}", "\n"),
    ("# {}\n{}", "\n"),
)


def code(rng: random.Random) -> str:
    """An order-like code, such as K-4821; sometimes of another shape."""
    letter = rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    draw = rng.random()
    if draw < 0.6:
        return f"{letter}-{rng.randrange(1000, 10000)}"
    if draw < 0.75:
        return f"{letter}{rng.choice('ABCDEFGHJKLMNPQRSTUVWXYZ')}-{rng.randrange(10, 1000)}"
    if draw < 0.9:
        return f"{rng.randrange(10, 100)}-{letter}"
    return f"{letter}{rng.randrange(100, 10000)}"


def _slots(rng: random.Random) -> dict[str, object]:
    name, name2 = rng.sample(lexicon.FIRST_NAMES, 2)
    thing, thing2 = rng.sample(list(lexicon.THINGS), 2)
    return {
        "name": name,
        "name2": name2,
        "thing": thing,
        "thing2": thing2,
        "code": code(rng),
        "code2": code(rng),
        "colour": rng.choice(lexicon.COLOURS),
        "pet": rng.choice(lexicon.PET_NAMES),
        "price": rng.randrange(2, 100),
        "number": rng.randrange(2, 100),
        "food": rng.choice(lexicon.FOODS),
        "town": rng.choice(lexicon.TOWNS),
        "day": rng.choice(lexicon.DAYS),
        "animal": rng.choice(lexicon.ANIMALS),
        "hour": f"{rng.randrange(1, 13)}:{rng.randrange(60):02d}",
    }


def passage(rng: random.Random) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Sentences, and what they settle; a key or question that occurs twice is dropped."""
    clues = rng.sample(CLUES, rng.randrange(1, 5))
    sentences: list[str] = []
    settled: list[tuple[str, str, str]] = []
    for clue in clues:
        slots = _slots(rng)
        sentences.append(clue.text.format_map(slots))
        settled += [(k, q.format_map(slots), str(a.format_map(slots))) for k, q, a in clue.settles]
    topic = rng.choice(list(TOPICS))
    for line in rng.sample(TOPICS[topic], rng.choice((0, 1, 1, 2))):
        sentences.insert(rng.randrange(len(sentences) + 1), line)
        settled.append(("topic", "What else is it about?", topic))
    if rng.random() < 0.4:
        size = rng.choice(("small", "medium", "large"))
        if size != "medium":
            sentences.append(rng.choice(SIZES[size]))
        settled.append(("size", "How big is it?", size))
    return sentences, _unambiguous(settled)


def _unambiguous(settled: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """One entry per question, and only the questions with one answer."""
    answers: dict[str, set[str]] = {}
    keys: dict[str, set[str]] = {}
    for key, question, answer in settled:
        answers.setdefault(question, set()).add(answer)
        keys.setdefault(key, set()).add(answer)
    unique = {q: (k, q, a) for k, q, a in settled if len(answers[q]) == 1 and len(keys[k]) == 1}
    return list(unique.values())


def questions(rng: random.Random, world: World) -> str:
    """A passage, then some of its questions in any order."""
    sentences, settled = passage(rng)
    asked = rng.sample(settled, min(len(settled), rng.randrange(1, 6)))
    before, after = rng.choice((("Question: ", "Answer: "), ("Q: ", "A: "), ("- ", "= "), ("", "")))
    lines = [f"{before}{question}\n{after}{answer}" for _, question, answer in asked]
    return " ".join(sentences) + "\n" + "\n".join(lines) + "\n"


def notes(rng: random.Random, world: World) -> str:
    """Passages of one run, each followed by its notes in one layout with one choice of keys."""
    pattern, join = rng.choice(LAYOUTS)
    head = rng.choice(("Text: ", "", "Story: ", "- ", "> "))
    foot = rng.choice(("Notes: ", "In short: ", "", "=> ", "Facts: ", "Known: "))
    lines: list[str] = []
    for _ in range(rng.randrange(1, 4)):
        sentences, settled = passage(rng)
        kept = {key: answer for key, _, answer in settled}
        chosen = rng.sample(list(kept), min(len(kept), rng.randrange(2, 7)))
        note = join.join(pattern.format(key, kept[key]) for key in chosen)
        lines.append(f"{head}{' '.join(sentences)}\n{foot}{note}")
    return "\n".join(lines) + "\n"


def copies(rng: random.Random, world: World) -> str:
    """Codes, words or sentences repeated exactly: all of them, or the one asked for."""
    if rng.random() < 0.7:
        return _repeated_items(rng)
    sentences, _ = passage(rng)
    place = rng.randrange(len(sentences))
    quoted = sentences[place].replace('"', "'")
    ask = rng.choice(
        (
            f'Quote sentence {place + 1}: "{quoted}"',
            f"Copy: {' '.join(sentences)}",
            f"Copy: {' '.join(sentences)}",
            f"Backwards: {' '.join(sentences[::-1])}",
            f"The first words: {' '.join(sentences[0].split()[:3])}",
        )
    )
    return f"{' '.join(sentences)}\n{ask}\n"


def _repeated_items(rng: random.Random) -> str:
    item = rng.choice((code, code, made_up_word, lambda draw: str(draw.randrange(10, 100_000))))
    items = [item(rng) for _ in range(rng.randrange(2, 11))]
    join = rng.choice((", ", " ", "; ", " / ", "\n"))
    lines = ["Items: " + join.join(items)]
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(items))
        start = items[place][0]
        by_start = {item[0]: item for item in reversed(items)}
        lines.append(
            rng.choice(
                (
                    f"Again: {join.join(items)}",
                    f"Mixed: {join.join(rng.sample(items, len(items)))}",
                    f"Backwards: {join.join(items[::-1])}",
                    f"Item number {place + 1}: {items[place]}",
                    f"The first that starts with {start}: {by_start[start]}",
                )
            )
        )
    return "\n".join(lines) + "\n"


def pairs(rng: random.Random, world: World) -> str:
    """A table of pairs, then most of them looked up, in any order and either direction."""
    left = [code(rng) for _ in range(rng.randrange(3, 9))]
    pool = rng.choice(
        (lexicon.FIRST_NAMES, tuple(lexicon.THINGS), lexicon.TOWNS, lexicon.PET_NAMES)
    )
    if rng.random() < 0.3:
        left = rng.sample(lexicon.FIRST_NAMES, len(left))
        pool = rng.choice((tuple(lexicon.THINGS), lexicon.TOWNS, lexicon.PET_NAMES, lexicon.DAYS))
    right = [str(x) for x in rng.sample(pool, min(len(pool), len(left)))]
    table = list(zip(left, right, strict=False))
    if rng.random() < 0.5:
        table = [(b, a) for a, b in table]
    shape = rng.choice(("{}: {}", "{} = {}", "{} -> {}", "{} has {}", "{} ({})", "{}, {}", "{} {}"))
    join = rng.choice(("\n", "; ", "\n"))
    asked = rng.sample(table, rng.randrange(1, len(table) + 1))
    mark = rng.choice(("? ", " => ", ": ", " - "))
    answers = [f"{a}{mark}{b}" if rng.random() < 0.7 else f"{b}{mark}{a}" for a, b in asked]
    return join.join(shape.format(*pair) for pair in table) + "\n\n" + "\n".join(answers) + "\n"
