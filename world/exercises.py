"""Drills: arithmetic, lists, kinds of things, word pairs, odd marks.

Short documents with one right answer. They teach counting, sorting and sorting into kinds, and
they make every printable ASCII character occur in an ordinary place.
"""

import random

from world import lexicon
from world.inhabitants import World

GROUP_NAMES = {
    "kitchen": "A kitchen thing",
    "garden": "A garden thing",
    "house": "A house thing",
    "music": "A music thing",
    "tool": "A tool",
    "clothing": "Clothing",
    "office": "An office thing",
    "toy": "A toy",
}

WORDS = (
    *lexicon.PLAIN_WORDS,
    *lexicon.THINGS,
    *(word for pair in lexicon.OPPOSITES for word in pair),
)


def arithmetic(rng: random.Random, world: World) -> str:
    """Sums, differences, products and small word problems."""
    lines: list[str] = []
    for _ in range(rng.randrange(2, 8)):
        a, b = rng.randrange(0, 100), rng.randrange(0, 100)
        small, tiny = rng.randrange(2, 13), rng.randrange(2, 13)
        thing = rng.choice(world.things)
        name = rng.choice(lexicon.FIRST_NAMES)
        lines.append(
            rng.choice(
                (
                    f"{a} + {b} = {a + b}",
                    f"{max(a, b)} - {min(a, b)} = {max(a, b) - min(a, b)}",
                    f"{small} * {tiny} = {small * tiny}",
                    f"{small * tiny} / {tiny} = {small}",
                    f"({small} + {tiny}) * 2 = {(small + tiny) * 2}",
                    f"{small}^2 = {small * small}",
                    f"{a} < {b}" if a < b else f"{a} > {b}" if a > b else f"{a} = {b}",
                    f"50% of {2 * a} is {a}.",
                    f"{name} has {a} plums and gets {b} more. Now {name} has {a + b} plums.",
                    f"{small} times {thing.name} at ${tiny} each: ${small * tiny} in total.",
                )
            )
        )
    return "\n".join(lines) + "\n"


def lists(rng: random.Random, world: World) -> str:
    """A list said again in another order, counted, or searched."""
    pool = rng.choice(
        (
            lexicon.FIRST_NAMES,
            lexicon.COLOURS,
            lexicon.FOODS,
            lexicon.ANIMALS,
            tuple(lexicon.THINGS),
            lexicon.TOWNS,
            lexicon.PET_NAMES,
            WORDS,
        )
    )
    items = rng.sample(list(dict.fromkeys(pool)), rng.randrange(3, 8))
    shown = rng.choice(
        (
            ", ".join(items),
            "{" + ", ".join(items) + "}",
            "[" + "; ".join(items) + "]",
            "\n".join(f"- {item}" for item in items),
            " | ".join(items),
            " / ".join(items),
            "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1)),
            ", ".join(f'"{item}"' for item in items),
            " & ".join(items),
        )
    )
    place = rng.randrange(len(items))
    tasks = (
        f"Backwards: {', '.join(items[::-1])}",
        f"Sorted: {', '.join(sorted(items))}",
        f"Again: {', '.join(items)}",
        f"How many? {len(items)}",
        f"First: {items[0]}\nLast: {items[-1]}",
        f"Number {place + 1} is {items[place]}.",
        f"Without {items[place]}: {', '.join(items[:place] + items[place + 1 :])}",
        f"After {items[0]} comes {items[1]}.",
        f"The longest word is {max(items, key=len)}.",
        f"As a set: {{{', '.join(sorted(items))}}}",
    )
    chosen = rng.sample(tasks, rng.randrange(1, 4))
    return f"List: {shown}\n" + "\n".join(chosen) + "\n"


def spelling(rng: random.Random, world: World) -> str:
    """Quoted everyday words: listed, counted, sorted, found by a letter."""
    drawn = rng.sample(lexicon.PLAIN_WORDS, rng.randrange(2, 8))
    drawn += rng.sample(WORDS, rng.randrange(1, 5))
    chosen = list(dict.fromkeys(drawn))
    rng.shuffle(chosen)
    quoted = ", ".join(f'"{word}"' for word in chosen)
    lines = [f"Words: {quoted}"]
    for _ in range(rng.randrange(1, 4)):
        word = rng.choice(chosen)
        lines.append(
            rng.choice(
                (
                    "Sorted: " + ", ".join(f'"{w}"' for w in sorted(chosen)),
                    "Title: " + ", ".join(w.capitalize() for w in chosen),
                    f'The word "{word}" has {len(word)} letters.',
                    f'"{word}" starts with {word[0]} and ends with {word[-1]}.',
                    f'The longest is "{max(chosen, key=len)}".',
                    f"Without quotes: {', '.join(chosen)}",
                    f"{word}: {'-'.join(word)}",
                )
            )
        )
    return "\n".join(lines) + "\n"


def kinds(rng: random.Random, world: World) -> str:
    """Which kind of thing is it, and which word is the opposite or the plainer word."""
    lines: list[str] = []
    for _ in range(rng.randrange(2, 7)):
        thing, other = rng.sample(list(lexicon.THINGS), 2)
        group = GROUP_NAMES[lexicon.THINGS[thing]]
        same = "Yes" if lexicon.THINGS[thing] == lexicon.THINGS[other] else "No"
        warm, cold = rng.choice(lexicon.OPPOSITES)
        if rng.random() < 0.5 and warm != "easy":
            warm, cold = cold, warm
        word, plain = rng.choice(lexicon.SYNONYMS)
        lines.append(
            rng.choice(
                (
                    f"Which kind of thing is a {thing}? {group}.",
                    f"Which kind of thing is a {thing}? {group}.",
                    f"Are a {thing} and a {other} of one kind? {same}.",
                    f"The opposite of {warm} is {cold}.",
                    f"It is not {warm}, it is {cold}.",
                    f"Another word for {word} is {plain}.",
                    f"{word}: {plain}",
                    f"{thing} -> {lexicon.THINGS[thing]}",
                )
            )
        )
    return "\n".join(lines) + "\n"


def marks(rng: random.Random, world: World) -> str:
    """A page of everyday notes: addresses, prices, paths, tables, signs."""
    person, town = rng.choice(world.people), rng.choice(world.towns)
    thing = rng.choice(world.things)
    a, b, c = rng.randrange(1, 60), rng.randrange(10, 100), rng.randrange(1, 13)
    small, first = town.name.lower().replace(" ", "_"), person.first.lower()
    key = rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    lines = (
        f"Mail: {first}.{person.surname.lower()}@{small}.town",
        f"Price of one {thing.name}: ${thing.price}.00 (about {thing.price} coins)",
        f"Sale! {b}% off every {thing.name} & {rng.choice(world.things).name}.",
        f"| name | town |\n| {person.name} | {person.town.name} |",
        f"C:\\letters\\{first}\\{b}.txt",
        f"/home/{first}/{small}/{a}.txt",
        f"The walk to {town.name} takes ~{a} minutes; it's {c} miles.",
        f"See note #{a} [page {b}] about `{thing.name}`.",
        f"<{thing.name}> was *very* cheap, wasn't it?",
        f"x_{a} = {b}; y^2 = {c * c}; so y = {c}.",
        f"Press {key} to stop, or press {key.lower()} to go on.",
        f"Time: {c}:{b % 60:02d}. Room: {c}{key}. Door code: {a}-{b}-{c}.",
        f"name: {person.name}\ntown: {person.town.name}\njob: {person.job}",
        f"P.S. Don't forget the {thing.name}; {person.first}'s is broken!",
        f"{{{c}, {c + 1}, {c + 2}}} is a set, ({c}, {c + 1}) is a pair, [{c}] is a list.",
        f"+{a}{b} {c}0{c} is the phone number of {person.name}.",
        f"Letters: {' '.join(rng.sample('abcdefghijklmnopqrstuvwxyz', 6))}",
    )
    return "\n".join(rng.sample(lines, rng.randrange(2, 6))) + "\n"
