"""Task (a): read a customer's ticket, write its record as JSON.

A record has four fields. `product` and `order` are copied from the ticket, past distractors
(another product, an earlier order). `problem` is one of six classes, each told in many ways.
`priority` is decided by a cue: a pressing one means high, a patient one low, none normal. One row
is one ticket; the rule never contradicts itself, so a perfect answer exists for every row.
"""

import json
import random
from collections.abc import Iterator

from world import lexicon
from world.rows import Row, unique_rows

PRODUCTS = (
    "kettle",
    "toaster",
    "blender",
    "speaker",
    "fridge",
    "teapot",
    "mixer",
    "stove",
    "hose",
    "pump",
    "mower",
    "bucket",
    "lamp",
    "heater",
    "fan",
    "clock",
    "boiler",
    "radio",
    "drill",
    "printer",
)
LONGEST = 180  # characters of a ticket's text; a row then stays below 110 tokens of the base
WET = ("kettle", "blender", "fridge", "teapot", "hose", "pump", "bucket", "boiler", "heater")
STILL = ("teapot", "hose", "bucket")  # nothing in them can run, so neither noise nor dead
PROBLEMS = {
    "leak": (
        "Water drips out of it.",
        "It leaks at the side.",
        "There is a puddle under it.",
        "Drops of water run down the front.",
        "The floor under it is always wet.",
        "It leaks all over the table.",
    ),
    "noise": (
        "It rattles like an old cart.",
        "It makes a loud buzz.",
        "It hums all night.",
        "There is a strange noise inside.",
        "It is far too loud.",
        "It whistles so that my ears hurt.",
    ),
    "dead": (
        "It does not start.",
        "Nothing happens when I press the button.",
        "It went dark.",
        "It will not turn on.",
        "It stopped working after a day.",
        "It is dead.",
    ),
    "crack": (
        "There is a crack in the side.",
        "It has a split in the middle.",
        "A corner is broken.",
        "It came apart in two pieces.",
        "The handle broke.",
        "A crack runs down the front.",
    ),
    "late": (
        "It has not come yet.",
        "I am still waiting for it.",
        "It should be here by now.",
        "The parcel never reached me.",
        "It was due on {day}, so it is late.",
        "Nothing has come so far.",
    ),
    "wrong": (
        "You sent me a {other} by mistake.",
        "I got a {other} instead.",
        "It is the wrong size.",
        "There was a {other} in the box.",
        "It is {colour}, but I asked for {colour2}.",
        "The colour is wrong: {colour}, not {colour2}.",
    ),
}
CUES = {
    "high": (
        "Please hurry, I need it by {day}.",
        "This is urgent.",
        "Someone could get hurt.",
        "I need an answer today.",
        "It cannot wait.",
    ),
    "low": (
        "There is no hurry.",
        "Take your time.",
        "It can wait.",
        "I am in no rush.",
        "Next month is early enough.",
    ),
    "normal": (
        "",
        "",
        "Can you help me?",
        "What should I do?",
        "Please let me know.",
        "Thank you.",
    ),
}
OPENINGS = (
    "I bought a {product} from you, order {order}.",
    "It is about the {product} of order {order}.",
    "My order {order} was for a {product}.",
    "I ordered a {product} ({order}).",
    "Order {order}, a {product}, is giving me trouble.",
    "{order} is my order: a {product}.",
    "I write about a {product}. The order is {order}.",
    "Hello, {name} here, with order {order} for a {product}.",
    "On {day} I paid for a {product}, order {order}.",
    "The {colour} {product} of order {order}.",
)
DISTRACTORS = (
    "My earlier order {code2} was fine.",
    "My sister {name} has the same one.",
    "I live in {town}.",
    "It cost me {price} coins.",
    "I like your {other} very much.",
    "I have bought from you for {number} years.",
    "{name} told me to write to you.",
    "The {other} of order {code2} works well.",
)


def _code(rng: random.Random) -> str:
    return f"{rng.choice('ABCDEFGHIJKLMNOPQRSTUVWXYZ')}-{rng.randrange(1000, 10000)}"


def _problem(rng: random.Random, product: str) -> str:
    possible = [p for p in PROBLEMS if p != "leak" or product in WET]
    if product in STILL:
        possible = [p for p in possible if p not in ("noise", "dead")]
    return rng.choice(possible)


def ticket(rng: random.Random) -> tuple[str, Row]:
    """(prompt, row) of one ticket drawn at random."""
    product, other = rng.sample(PRODUCTS, 2)
    colour, colour2 = rng.sample(lexicon.COLOURS, 2)
    problem, priority = _problem(rng, product), rng.choice(list(CUES))
    order = _code(rng)
    slots: dict[str, object] = {
        "product": product,
        "other": other,
        "colour": colour,
        "colour2": colour2,
        "order": order,
        "code2": _code(rng),
        "name": rng.choice(lexicon.FIRST_NAMES),
        "day": rng.choice(lexicon.DAYS),
        "town": rng.choice(lexicon.TOWNS),
        "price": rng.randrange(5, 90),
        "number": rng.randrange(2, 20),
    }
    body = [rng.choice(PROBLEMS[problem]), rng.choice(CUES[priority])]
    if rng.random() < 0.4:
        body.insert(rng.randrange(len(body) + 1), rng.choice(DISTRACTORS))
    if rng.random() < 0.3:  # the cue may come first
        body.reverse()
    text = " ".join(part for part in (rng.choice(OPENINGS), *body) if part).format_map(slots)
    record = {"product": product, "problem": problem, "order": order, "priority": priority}
    prompt = f"Ticket: {text}\nRecord:"
    if len(text) > LONGEST:
        return ticket(rng)
    return prompt, {"prompt": prompt, "completion": " " + json.dumps(record)}


def tickets(rows: int, seed: int) -> Iterator[Row]:
    """Unique tickets; seeds that differ modulo 16 share none."""
    return unique_rows(ticket, rows, seed, task="tickets")
