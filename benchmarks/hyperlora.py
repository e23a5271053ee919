"""HyperLoRA beside one shared LoRA of about its size, and one LoRA for each pair of languages.

    python -m benchmarks.hyperlora                            the bundled task (world, b)
    python -m benchmarks.hyperlora --multi30k FOLDER          captions in English, German, French

Every contender sees as many rows as the others; those with one adapter for each pair see each
pair's rows only, and so train a sixth as long each. No prompt tells into which language. Printed
are nats per label token on held-out rows, the share of answers in the language that was asked for
and of those that are right to the letter, and the loss under the conditions of other rows.
"""

import argparse
import gzip
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lorica
from lorica.base.load import LoadedModel
from lorica.core.condition import swapped_conditions
from lorica.data.config import DataConfig
from lorica.data.example import Example
from lorica.data.load import load_data
from lorica.evaluation.loss import score
from lorica.evaluation.questions import answer_questions, question_set
from lorica.formats.open_adapter import open_adapter
from world.translation import translation

Rows = list[dict[str, str]]
Numbers = NDArray[Any]
LANGUAGES = ("en", "de", "fr")
COLUMNS = ("trained", "loss", "language", "right", "swapped", "seconds")
HEAD = "{:10} {:>10} {:>7} {:>9} {:>7} {:>8} {:>8}".format("", *COLUMNS)


@dataclass(frozen=True)
class Found:
    """One contender.

    nll, tokens: nats and label tokens of each held-out row; swapped: nats under the conditions
    of other rows. language, right: share of answers in the language asked for, and exact ones.
    """

    name: str
    trained: int
    nll: Numbers
    tokens: Numbers
    swapped: Numbers | None
    language: float
    right: float
    seconds: float

    def loss(self, nll: Numbers) -> float:
        """Nats per label token."""
        return float(nll.sum() / self.tokens.sum())

    def __str__(self) -> str:
        off = "" if self.swapped is None else f"{self.loss(self.swapped):.3f}"
        return (
            f"{self.name:10} {self.trained:10,} {self.loss(self.nll):7.3f} "
            f"{self.language:9.1%} {self.right:7.1%} {off:>8} {self.seconds:8.0f}"
        )


def captions(folder: Path, part: str, count: int, seed: int) -> Rows:
    """Rows of Multi30k; each picture gives one direction."""
    texts = {}
    for name in LANGUAGES:
        with gzip.open(folder / f"{part}.{name}.gz", "rt", encoding="utf-8") as file:
            texts[name] = file.read().splitlines()
    rng, rows = random.Random(f"{part}/{seed}"), []
    for number in rng.sample(range(len(texts["en"])), count):
        source, into = rng.choice(list(permutations(LANGUAGES, 2)))
        rows.append(
            {
                "prompt": f"{texts[source][number]} =",
                "condition": f"{source}-{into}",
                "completion": f" {texts[into][number]}",
            }
        )
    return rows


def rows_of(chosen: argparse.Namespace) -> tuple[Rows, Rows]:
    """Training rows and held-out rows."""
    if chosen.multi30k:
        train = captions(chosen.multi30k, "train", chosen.rows, chosen.seed)
        return train, captions(chosen.multi30k, "val", chosen.held_out, chosen.seed)
    train = list(translation(chosen.rows, 1 + 16 * chosen.seed))
    return train, list(translation(chosen.held_out, 2))


def vocabularies(rows: Rows) -> dict[str, set[str]]:
    """The words of each language that no other has."""
    found: dict[str, set[str]] = {}
    for row in rows:
        source, into = row["condition"].split("-")
        found.setdefault(source, set()).update(row["prompt"].removesuffix(" =").split())
        found.setdefault(into, set()).update(row["completion"].split())
    every = Counter(word for words in found.values() for word in words)
    return {key: {word for word in words if every[word] == 1} for key, words in found.items()}


def language(text: str, words: dict[str, set[str]]) -> str | None:
    """The language that most words of `text` are of; None: it has no word of any."""
    count = {key: sum(word in own for word in text.split()) for key, own in words.items()}
    best = max(count, key=count.__getitem__)
    return best if count[best] else None


class Arena:
    """The rows, and what a contender is trained and measured with."""

    def __init__(self, train: Rows, test: Rows, chosen: argparse.Namespace, folder: Path):
        self.chosen, self.folder, self.words = chosen, folder, vocabularies(train)
        self.pairs = sorted({row["condition"] for row in train})
        self._write("train", train)
        self._write("test", test)
        for pair in self.pairs:
            self._write(pair, [row for row in train if row["condition"] == pair])

    def contenders(self) -> Iterator[Found]:
        """Each contender when it is trained and measured."""
        chosen = self.chosen
        hyper = {
            "name": "hyperlora",
            "condition": "pair",
            "r": chosen.r,
            "hidden": chosen.hidden,
            "latent": chosen.latent,
        }
        for name, method in (("hyperlora", hyper), ("one lora", {"r": chosen.shared_r})):
            began = time.perf_counter()
            base = self._fit("train", method, chosen.steps)
            yield self._measured([(base, self.pairs)], name, began)
        began, steps = time.perf_counter(), chosen.steps // len(self.pairs)
        each = [(self._fit(pair, {"r": chosen.r}, steps), [pair]) for pair in self.pairs]
        yield self._measured(each, f"{len(self.pairs)} loras", began)

    def _write(self, name: str, rows: Rows) -> None:
        lines = "\n".join(json.dumps(row) for row in rows)
        (self.folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    def _fit(self, rows: str, method: dict[str, Any], steps: int) -> LoadedModel:
        run = lorica.train(
            base=self.chosen.base,
            method=method,
            show=False,
            max_steps=steps,
            data={"path": str(self.folder / f"{rows}.jsonl"), "validation": 0},
            learning_rate=self.chosen.rate,
            max_grad_norm=self.chosen.norm,
            micro_batch_size=self.chosen.batch,
            seed=self.chosen.seed,
            output=str(self.folder / f"{rows}-{method.get('name', 'lora')}"),
        )
        return open_adapter(run.folder)

    def _rows(self, base: LoadedModel, conditions: Sequence[str]) -> list[Example]:
        config = DataConfig(path=str(self.folder / "test.jsonl"), validation=0)
        rows = load_data(
            config, base.tokenizer, seed=0, max_length=base.max_length, texts=True
        ).train
        return [row for row in rows if row.condition in conditions]

    def _measured(
        self, opened: list[tuple[LoadedModel, list[str]]], name: str, began: float
    ) -> Found:
        """A contender from its adapters, each with the conditions that it answers for."""
        nll, tokens, wrong, hits, spoken = [], [], [], [], []
        for base, conditions in opened:
            rows = self._rows(base, conditions)
            scores = score(base.model, rows)
            nll.append(scores.nll)
            tokens.append(scores.tokens)
            if name == "hyperlora":
                others = zip(
                    rows, swapped_conditions([str(row.condition) for row in rows]), strict=True
                )
                wrong.append(score(base.model, [replace(r, condition=c) for r, c in others]).nll)
            asked = question_set(base, rows)
            said, _ = answer_questions(base, asked, batch_size=64)
            for question, answer in zip(asked.questions, said, strict=True):
                wanted = str(question.row.condition).split("-")[1]
                hits.append(question.reference == answer)
                spoken.append(language(answer, self.words) == wanted)
        trained = sum(lorica.trainable_parameters(base.model).trainable for base, _ in opened)
        return Found(
            name,
            trained,
            np.concatenate(nll),
            np.concatenate(tokens),
            np.concatenate(wrong) if wrong else None,
            float(np.mean(spoken)),
            float(np.mean(hits)),
            time.perf_counter() - began,
        )


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--multi30k", type=Path, help="folder with train.en.gz and its like")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=8e-3)
    parser.add_argument("--norm", type=float, default=0.5, help="max_grad_norm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=4)
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--shared-r", type=int, default=14, help="rank of the one shared LoRA")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    chosen = arguments(words)
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for found in Arena(*rows_of(chosen), chosen, Path(folder)).contenders():
            print(found, flush=True)


if __name__ == "__main__":
    main()
