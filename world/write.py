"""Write rows of one kind to a JSONL file: `python -m world.write tickets --rows 100 --out t.jsonl`.

`pretrain` rows are {"text"}; `tickets` and `translation` rows are {"prompt", "completion"}
(translation also "condition"); `ve-ol` rows are translations in one of the directions; `reviews`
rows are {"text", "label"}.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from world.reviews import reviews
from world.rows import Row
from world.texts import documents
from world.tickets import tickets
from world.translation import translation


def pretrain(rows: int, seed: int) -> Iterator[Row]:
    """Pretraining documents as rows."""
    return ({"text": text} for _, text in documents(rows, seed))


def one_direction(rows: int, seed: int) -> Iterator[Row]:
    """Translations from "ve" into "ol" alone. Of sentences in all directions every sixth is one."""
    own = (row for row in translation(12 * rows, seed) if row.pop("condition") == "ve-ol")
    return islice(own, rows)


KINDS: dict[str, Callable[[int, int], Iterator[Row]]] = {
    "pretrain": pretrain,
    "tickets": tickets,
    "translation": translation,
    "ve-ol": one_direction,
    "reviews": reviews,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m world.write", description=__doc__)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--rows", type=int, default=1000, help="number of rows")
    parser.add_argument(
        "--seed", type=int, default=0, help="seeds that differ modulo 16 share no task row"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    chosen = parser.parse_args(arguments)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with chosen.out.open("w", encoding="utf-8") as file:
        for row in KINDS[chosen.kind](chosen.rows, chosen.seed):
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
