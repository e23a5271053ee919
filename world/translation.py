"""Task (b): translate between three invented languages, in all six directions.

A sentence is a meaning (who does what to whom, and when) said in one language:

    ve   subject verb object    article noun adjective    two genders, seen on the noun
    ol   subject object verb    article adjective noun    three genders, not seen on the noun
    tu   verb subject object    noun adjective article    two genders, not seen on the noun

Articles and adjectives agree with the gender of the noun, and a noun has its own gender in each
language, so it must be learnt with the word. The vocabulary is drawn once, from a fixed seed, out
of syllables that differ by language. A prompt shows its own language, but not into which of the
two others it is to be said: only the column `condition` tells ("ve-ol"), so that a model which
does not use it can be right about the language in one row of two.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from world.rows import Row, unique_rows

NOUNS = (
    "king",
    "child",
    "wolf",
    "bird",
    "farmer",
    "sailor",
    "mother",
    "stranger",
    "horse",
    "snake",
    "stone",
    "river",
    "bread",
    "knife",
    "house",
    "flower",
    "boat",
    "apple",
    "tree",
    "star",
    "road",
    "coat",
    "bell",
    "letter",
)
VERBS = (
    "see",
    "find",
    "carry",
    "love",
    "fear",
    "hide",
    "break",
    "follow",
    "wash",
    "sell",
    "guard",
    "paint",
)
ADJECTIVES = (
    "big",
    "small",
    "old",
    "young",
    "red",
    "black",
    "white",
    "warm",
    "cold",
    "kind",
    "strange",
    "heavy",
    "quiet",
    "new",
)
TENSES = ("now", "past")
# Sentences take the first half of each list, so that a few hundred steps can teach the words. The
# languages keep them all: pretraining avoids every one.
SAID_NOUNS, SAID_VERBS, SAID_ADJECTIVES = NOUNS[:12], VERBS[:6], ADJECTIVES[:7]
# language -> onsets, vowels, closing consonants of its stems
SOUNDS = {
    "ve": ("bv dr kv sk tl mr zv sl vl", "a e i o", "k l m n r s sk"),
    "ol": ("gh gl zh yw vl dj hw", "o u au e", "f g mb th lth dh"),
    "tu": ("qu ts kw xk pw", "a i u ai", "h x q xi quo xu"),
}
# language -> gender -> definite article, indefinite article, adjective ending or prefix
MARKS = {
    "ve": {"m": ("velo", "vuno", "o"), "f": ("vela", "vuna", "a")},
    "ol": {"m": ("ghu", "wuz", "um"), "f": ("ghe", "wez", "er"), "n": ("gha", "waz", "an")},
    "tu": {"a": ("xaq", "paqa", "ka"), "i": ("xiq", "piqi", "mi")},
}
TENSE_ENDINGS = {"ve": ("et", "avet"), "ol": ("ugg", "oyu"), "tu": ("ax", "uma")}
LANGUAGES = tuple(SOUNDS)


@dataclass(frozen=True)
class Phrase:
    """A noun with its article and perhaps an adjective."""

    noun: str
    adjective: str | None
    definite: bool


@dataclass(frozen=True)
class Meaning:
    """What a sentence says, in no language."""

    subject: Phrase
    verb: str
    tense: str
    object: Phrase


def _stems(language: str) -> dict[str, str]:
    """One stem per concept; no stem of a language comes twice."""
    rng = random.Random(f"stems/{language}")
    onsets, vowels, codas = (part.split() for part in SOUNDS[language])
    stems: dict[str, str] = {}
    for concept in NOUNS + VERBS + ADJECTIVES:
        while concept not in stems:
            stem = "".join(map(rng.choice, (onsets, vowels, codas)))
            if stem not in stems.values():
                stems[concept] = stem
    return stems


def _genders(language: str) -> dict[str, str]:
    rng = random.Random(f"genders/{language}")
    return {noun: rng.choice(list(MARKS[language])) for noun in NOUNS}


STEMS = {language: _stems(language) for language in LANGUAGES}
GENDERS = {language: _genders(language) for language in LANGUAGES}


def _phrase(language: str, phrase: Phrase) -> str:
    gender = GENDERS[language][phrase.noun]
    definite, indefinite, mark = MARKS[language][gender]
    article = definite if phrase.definite else indefinite
    noun = STEMS[language][phrase.noun]
    adjective = STEMS[language][phrase.adjective] if phrase.adjective else ""
    if language == "ve":
        words = (article, noun + mark, adjective and adjective + mark)
    elif language == "ol":
        words = (article, adjective and adjective + mark, noun)
    else:
        words = (noun, adjective and mark + adjective, article)
    return " ".join(word for word in words if word)


def say(language: str, meaning: Meaning) -> str:
    """The sentence of `language` for this meaning."""
    subject, target = _phrase(language, meaning.subject), _phrase(language, meaning.object)
    ending = TENSE_ENDINGS[language][TENSES.index(meaning.tense)]
    verb = STEMS[language][meaning.verb] + ending
    orders = {
        "ve": (subject, verb, target),
        "ol": (subject, target, verb),
        "tu": (verb, subject, target),
    }
    return " ".join(orders[language])


def words() -> frozenset[str]:
    """Every written form of the three languages."""
    forms: set[str] = set()
    for language in LANGUAGES:
        stems = STEMS[language]
        marks = [mark for *_, mark in MARKS[language].values()]
        forms |= {article for *both, _ in MARKS[language].values() for article in both}
        forms |= {stems[verb] + end for verb in VERBS for end in TENSE_ENDINGS[language]}
        forms |= {stems[n] + (mark if language == "ve" else "") for n in NOUNS for mark in marks}
        forms |= {
            mark + stems[a] if language == "tu" else stems[a] + mark
            for a in ADJECTIVES
            for mark in marks
        }
    return frozenset(forms)


def _draw_phrase(rng: random.Random, noun: str) -> Phrase:
    adjective = rng.choice(SAID_ADJECTIVES) if rng.random() < 0.6 else None
    return Phrase(noun, adjective, rng.random() < 0.5)


def sentence(rng: random.Random) -> tuple[str, Row]:
    """(identity of the meaning, row) of one sentence in one direction."""
    subject, target = rng.sample(SAID_NOUNS, 2)
    meaning = Meaning(
        _draw_phrase(rng, subject),
        rng.choice(SAID_VERBS),
        rng.choice(TENSES),
        _draw_phrase(rng, target),
    )
    source, into = rng.choice(list(permutations(LANGUAGES, 2)))
    return repr(meaning), {
        "prompt": f"{say(source, meaning)} =",
        "completion": f" {say(into, meaning)}",
        "condition": f"{source}-{into}",
    }


def translation(rows: int, seed: int) -> Iterator[Row]:
    """Unique sentences; seeds that differ modulo 16 share no meaning, in any direction."""
    return unique_rows(sentence, rows, seed, task="translation")
