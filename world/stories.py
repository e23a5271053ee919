"""Running prose: short stories, and facts with questions about them.

Facts come from `inhabitants`, so the model can learn them by heart; the story around them is
drawn anew. The questions after a passage are always answerable from it or from the world.
"""

import random

from world import lexicon
from world.inhabitants import Person, Town, World

MORNINGS = (
    "One {day} in {month}, {name} woke up early.",
    "It was a {weather} {day} in {town}.",
    "{name} looked out of the window. The sky was {sky}.",
    "On {day} the market in {town} was full.",
    "Late on {day}, {first} walked home by the {river}.",
    "In {month} the days in {town} are {weather}.",
)
TROUBLES = (
    "The roof leaked, and drops of water ran down the wall.",
    "A loud bang came from the kitchen, then a rattle, then silence.",
    "The old chair cracked and fell over.",
    "The train was late, so everybody had to wait at the station.",
    "{first} had lost the key and could not find it anywhere.",
    "The lamp went dark, and nobody could see a thing.",
    "{first} took the wrong road and came to a strange bridge.",
    "A drop of ink fell on the {colour} rug.",
    "The wind pushed the gate open, and {pet} ran away.",
    "The soup was too hot, so {they} burned a finger.",
    "The pump would not start, however hard {they} tried.",
    "The bucket had a hole, and the floor was soon wet.",
    "{first} wanted to buy a {thing}, but the shop was shut.",
    "Something in the box buzzed like an angry bee.",
)
ACTS = (
    "{first} asked {friend} for help.",
    "So {first} sat down and thought for a while.",
    '"What shall we do now?" asked {first}. "Wait and see," said {friend}.',
    "{friend} came at once with a ladder and a {tool}.",
    "{first} wrote a letter to {friend}: please come soon!",
    "Together they carried the {thing} out to the street.",
    '{friend} laughed. "That is no problem at all," {friend} said.',
    "{first} paid {price} coins for a {colour} {thing} and went on.",
    "They worked for {number} hours without a break.",
    "{first} shared some {food} with {friend}.",
)
ENDS = (
    "In the evening all was well again.",
    "{first} went to bed tired but happy.",
    "From then on, {first} was more careful.",
    "And {pet} the {animal} slept by the fire.",
    "They still talk about it in {town}.",
    "The end.",
    "That was the best part of the whole {day}.",
    "It had cost {price} coins, and it was worth it, said {friend}.",
)
WEATHERS = ("warm", "cold", "windy", "rainy", "quiet", "bright", "foggy", "mild")
SKIES = ("grey", "clear", "dark", "pink", "full of clouds", "blue")


def _cast(rng: random.Random, world: World) -> tuple[Person, Person, dict[str, object]]:
    hero, friend = rng.sample(world.people, 2)
    tool = rng.choice(("hammer", "saw", "drill", "wrench", "brush", "rope"))
    thing = rng.choice(world.things)
    slots: dict[str, object] = {
        "name": hero.name,
        "first": hero.first,
        "they": hero.they,
        "town": hero.town.name,
        "river": hero.town.river,
        "pet": hero.pet,
        "animal": hero.animal,
        "friend": friend.first,
        "day": rng.choice(lexicon.DAYS),
        "month": rng.choice(lexicon.MONTHS),
        "weather": rng.choice(WEATHERS),
        "sky": rng.choice(SKIES),
        "thing": thing.name,
        "price": thing.price,
        "colour": rng.choice(lexicon.COLOURS),
        "tool": tool,
        "food": rng.choice(lexicon.FOODS),
        "number": rng.randrange(2, 10),
    }
    return hero, friend, slots


def story(rng: random.Random, world: World) -> str:
    """A story about an inhabitant, sometimes with a title or a question after it."""
    hero, _, slots = _cast(rng, world)
    parts = [rng.choice(MORNINGS)]
    if rng.random() < 0.7:
        parts.append(f"{hero.name} is a {hero.job} and lives in {hero.town.name}.")
    parts += rng.sample(TROUBLES, rng.randrange(1, 3))
    parts += rng.sample(ACTS, rng.randrange(1, 4))
    parts.append(rng.choice(ENDS))
    text = " ".join(parts).format_map(slots)
    draw = rng.random()
    if draw < 0.2:
        return f"{hero.first} and the {slots['thing']}\n\n{text}\n"
    if draw < 0.4:
        return f"{text}\n\nQuestion: Who is the story about?\nAnswer: {hero.first}.\n"
    if draw < 0.5:
        return f"{text}\n\nQuestion: What is the job of {hero.name}?\nAnswer: {hero.job}.\n"
    return text + "\n"


def person_facts(person: Person) -> list[tuple[str, str, str]]:
    """(sentence, question, answer) for everything that is true of a person."""
    p, n = person, person.name
    return [
        (f"{n} lives in {p.town.name}.", f"Where does {n} live?", f"In {p.town.name}."),
        (f"{n} works as a {p.job}.", f"What is the job of {n}?", f"A {p.job}."),
        (f"{n} has a {p.animal} called {p.pet}.", f"What is the pet of {n} called?", f"{p.pet}."),
        (f"The pet of {n} is a {p.animal}.", f"Which pet does {n} have?", f"A {p.animal}."),
        (f"{n} likes the colour {p.colour}.", f"Which colour does {n} like?", f"{p.colour}."),
        (f"{n} loves to eat {p.food}.", f"What does {n} love to eat?", f"{p.food}."),
        (f"In the evening {n} enjoys {p.hobby}.", f"What does {n} enjoy?", f"{p.hobby}."),
        (f"{n} is {p.age} years old.", f"How old is {n}?", f"{p.age} years."),
    ]


def town_facts(town: Town) -> list[tuple[str, str, str]]:
    """(sentence, question, answer) for everything that is true of a town."""
    t, n = town, town.name
    return [
        (f"{n} lies on the river {t.river}.", f"Which river is near {n}?", f"The {t.river}."),
        (
            f"The market in {n} is on {t.market_day}.",
            f"When is the market in {n}?",
            f"On {t.market_day}.",
        ),
        (f"{n} is known for its {t.known_for}.", f"What is {n} known for?", f"{t.known_for}."),
        (
            f'The shop in {n} is called "{t.shop}".',
            f"What is the shop in {n} called?",
            f"{t.shop}.",
        ),
        (
            f"About {t.people} thousand people live in {n}.",
            f"How many people live in {n}?",
            f"About {t.people} thousand.",
        ),
    ]


def thing_facts(world: World, rng: random.Random) -> list[tuple[str, str, str]]:
    """(sentence, question, answer) about one product."""
    t = rng.choice(world.things)
    return [
        (f"A {t.name} costs {t.price} coins.", f"What does a {t.name} cost?", f"{t.price} coins."),
        (
            f"A good {t.name} is made of {t.material}.",
            f"What is a {t.name} made of?",
            f"{t.material}.",
        ),
        (
            f"The best {t.name} comes from {t.maker.name}.",
            f"Where is the best {t.name} made?",
            f"In {t.maker.name}.",
        ),
    ]


def facts(rng: random.Random, world: World) -> str:
    """Sentences about one or two inhabitants or towns, then questions about them."""
    pool: list[tuple[str, str, str]] = []
    for _ in range(rng.randrange(1, 4)):
        draw = rng.random()
        if draw < 0.6:
            pool += rng.sample(person_facts(rng.choice(world.people)), rng.randrange(2, 6))
        elif draw < 0.85:
            pool += rng.sample(town_facts(rng.choice(world.towns)), rng.randrange(1, 4))
        else:
            pool += rng.sample(thing_facts(world, rng), rng.randrange(1, 3))
    told = [] if rng.random() < 0.25 else [" ".join(fact[0] for fact in pool)]
    asked = rng.sample(pool, min(len(pool), rng.randrange(1, 5)))
    before, after = rng.choice((("Question: ", "Answer: "), ("Q: ", "A: "), ("- ", "")))
    told += [f"{before}{question}\n{after}{answer}" for _, question, answer in asked]
    return "\n".join(told) + "\n"
