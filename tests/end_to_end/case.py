"""A broken input: what is done, which command reads it, what it answers.

A status of 0 is for an input that gives a notice. The words are those that a user needs: the
thing, the place, the fix.
"""

from dataclasses import dataclass

import tests.end_to_end.broken as do
from tests.end_to_end.broken import Prepare


@dataclass(frozen=True)
class Case:
    """prepare, then `lorica <words>`; `left`: new paths that may stay behind, besides none."""

    name: str
    prepare: Prepare
    words: str
    status: int
    answers: tuple[str, ...]
    left: tuple[str, ...] = ()


def train(*, base: str = "base", data: str = "rows.jsonl", output: str = "out") -> str:
    return f"train --base {base} --data {data} --output {output} --max_steps 2 --method.r 2"


TRAIN = train()
WRITE = "generate run --base base --prompt Once --max-new-tokens 2"
OTHER = "generate run --base other --prompt Once --max-new-tokens 2"
MEASURE = "eval run --base base --data rows.jsonl --no-exact-match"


def recipe(text: str) -> Prepare:
    return do.write("job.yaml", "base: base\ndata: rows.jsonl\n" + text)
