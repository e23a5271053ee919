"""Chats in the template that the tokenizer renders: user, assistant, special marks between.

The chats repeat the skills of the other texts (facts, reading, sums, kinds), so that a chat and a
plain prompt draw on the same knowledge.
"""

import random

from world import lexicon, reading
from world.exercises import GROUP_NAMES
from world.inhabitants import World
from world.stories import person_facts, thing_facts, town_facts

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

GREETINGS = (
    ("Hello!", "Hello! How can I help you?"),
    ("Good morning.", "Good morning! What would you like to know?"),
    ("Hi, who are you?", "I am a small assistant. I know some people and towns."),
    ("How are you?", "I am well, thank you. And you?"),
)
PARTINGS = (
    ("Thank you!", "You are welcome."),
    ("That is all for today.", "Goodbye, and have a good day."),
    ("Thanks, bye.", "Goodbye!"),
)


def turn(user: str, assistant: str) -> str:
    """One exchange as the chat template writes it."""
    return f"{USER}\n{user}{END}\n{ASSISTANT}\n{assistant}{END}\n"


def _fact_turn(rng: random.Random, world: World) -> tuple[str, str]:
    draw = rng.random()
    if draw < 0.6:
        pool = person_facts(rng.choice(world.people))
    elif draw < 0.85:
        pool = town_facts(rng.choice(world.towns))
    else:
        pool = thing_facts(world, rng)
    sentence, question, answer = rng.choice(pool)
    return question, rng.choice((answer, sentence))


def _reading_turns(rng: random.Random) -> list[tuple[str, str]]:
    sentences, settled = reading.passage(rng)
    asked = rng.sample(settled, min(len(settled), rng.randrange(1, 4)))
    if not asked:
        return [(f"Please repeat: {' '.join(sentences)}", " ".join(sentences))]
    (_, question, answer), rest = asked[0], asked[1:]
    first = (f"{' '.join(sentences)}\n{question}", f"{answer}.")
    return [first, *((q, f"{a}.") for _, q, a in rest)]


def _skill_turn(rng: random.Random, world: World) -> tuple[str, str]:
    a, b = rng.randrange(0, 100), rng.randrange(0, 100)
    thing = rng.choice(list(lexicon.THINGS))
    warm, cold = rng.choice(lexicon.OPPOSITES)
    words = rng.sample(lexicon.COLOURS + lexicon.FOODS, rng.randrange(2, 6))
    return rng.choice(
        (
            (f"What is {a} + {b}?", f"{a + b}"),
            (f"What is {max(a, b)} - {min(a, b)}?", f"It is {max(a, b) - min(a, b)}."),
            (f"Which kind of thing is a {thing}?", f"{GROUP_NAMES[lexicon.THINGS[thing]]}."),
            (f"What is the opposite of {warm}?", f"{cold}."),
            (f"Repeat after me: {', '.join(words)}.", f"{', '.join(words)}."),
            (f"Say it backwards: {', '.join(words)}.", f"{', '.join(words[::-1])}."),
            (f"Make a set of {', '.join(words)}.", f"{{{', '.join(words)}}}"),
            (f"Spell {thing}.", "-".join(thing)),
        )
    )


def chat(rng: random.Random, world: World) -> str:
    """A chat of one to five exchanges."""
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.25:
        turns.append(rng.choice(GREETINGS))
    for _ in range(rng.randrange(1, 4)):
        draw = rng.random()
        if draw < 0.4:
            turns.append(_fact_turn(rng, world))
        elif draw < 0.7:
            turns += _reading_turns(rng)
        else:
            turns.append(_skill_turn(rng, world))
    if rng.random() < 0.2:
        turns.append(rng.choice(PARTINGS))
    return "".join(turn(*t) for t in turns)
