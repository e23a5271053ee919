"""The fixed facts: who lives where, what a town is known for, what a thing costs.

`World(seed)` draws them once; every document that names an inhabitant reads them here, so no two
documents contradict each other. People made up inside one document ("strangers") carry a first
name only, never a surname, and so never clash with these facts.
"""

import random
from dataclasses import dataclass
from functools import cache

from world import lexicon

PEOPLE = 160


@dataclass(frozen=True, kw_only=True)
class Town:
    """A town and what is always true of it."""

    name: str
    river: str
    market_day: str
    known_for: str  # a food
    shop: str
    people: int  # thousands


@dataclass(frozen=True, kw_only=True)
class Person:
    """An inhabitant and what is always true of them."""

    first: str
    surname: str
    they: str  # "she" or "he"
    town: Town
    job: str
    animal: str
    pet: str
    colour: str
    food: str
    hobby: str
    age: int  # years

    @property
    def name(self) -> str:
        return f"{self.first} {self.surname}"


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A product sold in the shops of the world."""

    name: str
    group: str
    material: str
    price: int  # coins
    maker: Town


class World:
    """All inhabitants of one world seed."""

    def __init__(self, seed: int = 0) -> None:
        rng = random.Random(f"world/{seed}")
        self.towns = tuple(_town(rng, name) for name in lexicon.TOWNS)
        pairs = [(a, b) for a in lexicon.FIRST_NAMES for b in lexicon.SURNAMES]
        self.people = tuple(_person(rng, *p, self.towns) for p in rng.sample(pairs, PEOPLE))
        self.things = tuple(
            Thing(
                name=name,
                group=group,
                material=rng.choice(lexicon.MATERIALS),
                price=rng.randrange(2, 80),
                maker=rng.choice(self.towns),
            )
            for name, group in lexicon.THINGS.items()
        )


def _town(rng: random.Random, name: str) -> Town:
    return Town(
        name=name,
        river=rng.choice(lexicon.RIVERS),
        market_day=rng.choice(lexicon.DAYS),
        known_for=rng.choice(lexicon.FOODS),
        shop=f"The {rng.choice(lexicon.COLOURS).title()} {rng.choice(lexicon.ANIMALS).title()}",
        people=rng.randrange(2, 60),
    )


def _person(rng: random.Random, first: str, surname: str, towns: tuple[Town, ...]) -> Person:
    return Person(
        first=first,
        surname=surname,
        they="she" if first[-1] == "a" else "he",
        town=rng.choice(towns),
        job=rng.choice(lexicon.JOBS),
        animal=rng.choice(lexicon.ANIMALS),
        pet=rng.choice(lexicon.PET_NAMES),
        colour=rng.choice(lexicon.COLOURS),
        food=rng.choice(lexicon.FOODS),
        hobby=rng.choice(lexicon.HOBBIES),
        age=rng.randrange(18, 80),
    )


@cache
def world(seed: int = 0) -> World:
    """The world of this seed, built once per process."""
    return World(seed)
