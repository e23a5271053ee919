"""The world: same seed, same text; the task families stay out of the pretraining text."""

import json
import random
import re
import string
from pathlib import Path

import pytest

from world import reviews, tickets, translation, write
from world.inhabitants import World, world
from world.rows import LOTS, unique_rows
from world.texts import KINDS, documents
from world.translation import Meaning, Phrase, say

TASKS = {
    "tickets": tickets.tickets,
    "translation": translation.translation,
    "reviews": reviews.reviews,
}


@pytest.fixture(scope="module")
def corpus() -> list[tuple[str, str]]:
    return list(documents(20_000, seed=5))


def pattern(template: str) -> str:
    """A regular expression for any sentence of this template."""
    parts = re.split(r"\{\w+\}", template)
    return r"[\w-]+( \w+)?".join(re.escape(part) for part in parts)


def test_documents_depend_on_seed_and_index_alone() -> None:
    whole = list(documents(50, seed=3))
    assert whole == list(documents(50, seed=3))
    assert whole[20:] == list(documents(30, seed=3, start=20))
    assert whole != list(documents(50, seed=4))


def test_a_world_is_fixed_by_its_seed() -> None:
    assert World(0).people == world(0).people
    assert World(1).people != world(0).people
    assert len({person.name for person in world().people}) == len(world().people)


def test_every_kind_and_every_printable_character_occurs(corpus: list[tuple[str, str]]) -> None:
    assert {kind for kind, _ in corpus} == set(KINDS)
    printable = set(string.printable) - set("\t\r\x0b\x0c")
    assert printable <= {character for _, text in corpus for character in text}


def test_shares_sum_to_one() -> None:
    assert sum(share for _, share in KINDS.values()) == pytest.approx(1)


def test_no_json_record_in_pretraining(corpus: list[tuple[str, str]]) -> None:
    for _, text in corpus:
        assert '{"' not in text
        assert not re.search(r'"\w+": ?["{\[]', text)
        for candidate in re.findall(r"\{[^{}]*\}", text):
            with pytest.raises(json.JSONDecodeError):
                json.loads(candidate)


@pytest.mark.slow
def test_no_ticket_and_no_review_in_pretraining(corpus: list[tuple[str, str]]) -> None:
    told = [*tickets.PROBLEMS.values(), *tickets.CUES.values()]
    templates = {line for lines in told for line in lines}
    templates |= {*tickets.OPENINGS, *tickets.DISTRACTORS, *reviews.PLAIN}
    text = "\n".join(text for _, text in corpus)
    assert "Ticket:" not in text and "Record:" not in text
    held_out = [template for template in templates if len(template.split()) > 2]
    assert len(held_out) > 60
    assert [line for line in held_out if re.search(pattern(line), text)] == []
    things = f"({'|'.join(reviews.NAMED)})"
    subjects = "|".join(subject.replace("{thing}", things) for subject in reviews.SUBJECTS)
    assert not re.search(rf"(?i)({subjects}) ({'|'.join(reviews.GOOD + reviews.BAD)})\b", text)


def test_no_word_of_the_three_languages_in_pretraining(corpus: list[tuple[str, str]]) -> None:
    used = {word for _, text in corpus for word in re.findall(r"[a-z]+", text.lower())}
    assert used & translation.words() == set()


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_unique_repeatable_and_disjoint_between_seeds(task: str) -> None:
    rows = {seed: [json.dumps(row) for row in TASKS[task](400, seed)] for seed in (1, 2)}
    assert len(set(rows[1])) == 400
    assert rows[1] == [json.dumps(row) for row in TASKS[task](400, 1)]
    assert not set(rows[1]) & set(rows[2])
    other = [json.dumps(row) for row in TASKS[task](200, 1 + LOTS)]
    assert other != rows[1][:200]


def test_ticket_records_parse_and_copy_from_the_ticket() -> None:
    seen: dict[str, set[str]] = {"problem": set(), "priority": set(), "product": set()}
    for row in tickets.tickets(600, seed=7):
        assert row["prompt"].startswith("Ticket: ") and row["prompt"].endswith("\nRecord:")
        assert row["completion"].startswith(" {")
        record = json.loads(row["completion"])
        assert list(record) == ["product", "problem", "order", "priority"]
        assert record["order"] in row["prompt"] and record["product"] in row["prompt"]
        for key, values in seen.items():
            values.add(record[key])
    assert seen["problem"] == set(tickets.PROBLEMS)
    assert seen["priority"] == {"low", "normal", "high"}
    assert seen["product"] == set(tickets.PRODUCTS)


def test_ticket_priority_follows_its_cue() -> None:
    for row in tickets.tickets(300, seed=8):
        priority = json.loads(row["completion"])["priority"]
        for level in ("high", "low"):
            told = any(cue.split("{")[0] in row["prompt"] for cue in tickets.CUES[level])
            assert told == (priority == level)


BIG_WOLF = Phrase("wolf", "big", definite=True)
STONE = Phrase("stone", None, definite=False)
OLD_STONE = Phrase("stone", "old", definite=True)


@pytest.mark.parametrize(
    ("language", "sentence"),
    [  # wolf is f in ve, n in ol, a in tu; stone is m in ve, m in ol, i in tu
        ("ve", "vela bvesa slola kvenet vuno sloro"),
        ("ol", "gha djauthan djef wuz hwauf ghaudhugg"),
        ("tu", "tsixuax pwaxu katsuq xaq tsaq piqi"),
    ],
)
def test_word_order_and_agreement(language: str, sentence: str) -> None:
    assert say(language, Meaning(BIG_WOLF, "see", "now", STONE)) == sentence


def test_past_tense_and_agreement_of_the_object() -> None:
    meaning = Meaning(STONE, "hide", "past", BIG_WOLF)
    assert [say(language, meaning) for language in translation.LANGUAGES] == [
        "vuno sloro slesavet vela bvesa slola",
        "wuz hwauf gha djauthan djef ywaumboyu",
        "tsaihuma tsaq piqi pwaxu katsuq xaq",
    ]
    turned = Meaning(BIG_WOLF, "hide", "past", OLD_STONE)
    assert say("ve", turned) == "vela bvesa slola slesavet velo sloro kvero"


def test_translation_rows_have_all_directions_and_one_reading() -> None:
    rows = list(translation.translation(600, seed=9))
    assert len({row["condition"] for row in rows}) == 6
    forms = translation.words()
    articles = {
        form: language
        for language, marks in translation.MARKS.items()
        for *both, _ in marks.values()
        for form in both
    }
    for row in rows:
        source, into = row["condition"].split("-")
        assert row["prompt"].endswith(" =") and row["completion"].startswith(" ")
        said, wanted = row["prompt"].removesuffix(" =").split(), row["completion"].split()
        assert {*said, *wanted} <= forms, "and so the prompt does not name the languages"
        assert {articles[word] for word in said if word in articles} == {source}
        assert {articles[word] for word in wanted if word in articles} == {into}


def test_reviews_obey_the_rule() -> None:
    labels: set[str] = set()
    for row in reviews.reviews(400, seed=3):
        opinion = next(
            s
            for s in re.split(r"(?<=\.) ", row["text"])
            if any(f" {word}" in s for word in reviews.GOOD + reviews.BAD)
        )
        decided = opinion.split(", although")[0].split(", but ")[-1]
        words = [w for w in reviews.GOOD + reviews.BAD if decided.rstrip(".").endswith(" " + w)]
        negated = " not " in decided or " never " in decided
        good = max(words, key=len) in reviews.GOOD
        assert row["label"] == ("positive" if good != negated else "negative")
        labels.add(row["label"])
    assert labels == {"positive", "negative"}


@pytest.mark.parametrize("kind", write.KINDS)
def test_the_command_writes_what_the_generator_says(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "folder" / "rows.jsonl"
    write.main([kind, "--rows", "20", "--seed", "6", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == list(write.KINDS[kind](20, 6))
    assert len(rows) == 20


def test_an_impossible_number_of_rows_is_refused() -> None:
    def one(_: random.Random) -> tuple[str, dict[str, str]]:
        return "same", {"prompt": "same"}

    with pytest.raises(ValueError, match=r"rows exist for seed"):
        list(unique_rows(one, 2, 0, task="tiny"))
