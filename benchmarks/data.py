"""The data of a training at scale: time and memory of a file of a million rows.

python -m benchmarks.data write rows.jsonl --rows 1000000
"""

import argparse
import json
import random
from pathlib import Path

SUBJECTS = ["order", "parcel", "invoice", "battery", "kettle", "lamp", "chair", "router", "bicycle"]
VERBS = [
    "arrived broken",
    "stopped",
    "leaked",
    "vanished",
    "rattled",
    "froze",
    "came back",
    "failed",
]
TIMES = ["yesterday", "on Monday", "last week", "this morning", "in April", "before the storm"]
ADVICE = ["restart", "replace", "return", "photograph", "weigh", "unplug", "register", "repair"]


def write_rows(path: Path, rows: int, seed: int = 0) -> None:
    """Write `rows` conversations of about 460 bytes, no two alike, as JSON Lines."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(json.dumps({"messages": _conversation(draw, number)}) + "\n")


def _conversation(draw: random.Random, number: int) -> list[dict[str, str]]:
    subject = draw.choice(SUBJECTS)
    question = f"Case {number}: {_sentence(draw, subject)} {_sentence(draw, draw.choice(SUBJECTS))}"
    answer = " ".join(
        f"Please {draw.choice(ADVICE)} the {subject} and note {draw.randrange(10**6)}."
        for _ in range(draw.randrange(3, 8))
    )
    return [
        {"role": "user", "content": f"{question} What should I do?"},
        {"role": "assistant", "content": answer},
    ]


def _sentence(draw: random.Random, subject: str) -> str:
    return (
        f"My {subject} {draw.choice(VERBS)} {draw.choice(TIMES)} and the label reads "
        f"{draw.choice('ABCDEFGH')}-{draw.randrange(10**5)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="write a file of conversations")
    write.add_argument("path", type=Path)
    write.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    write_rows(given.path, given.rows)


if __name__ == "__main__":
    main()
