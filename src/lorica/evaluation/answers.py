"""Exact match: rows with a prompt and an answer, the answer written by the model itself.

An answer is right if it is the reference, or one of several, but for white space at its ends. The
prompt is tokenised as in training, and the template's end-of-turn is cut from both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorica.base.load import LoadedModel
from lorica.core.condition import conditioned
from lorica.data.example import Example
from lorica.data.rendered_row import RenderedRow
from lorica.data.text_encoder import TextEncoder, prompt_ids
from lorica.errors import listed
from lorica.generation.generate import generate_from_ids
from lorica.generation.sampling import Sampling
from lorica.generation.stops import Stops, stops_of

KINDS = ("alpaca", "prompt", "messages", "sharegpt")
SPARE = 16  # tokens that an answer may be longer than the longest reference


@dataclass(frozen=True)
class Question:
    """One row: what is asked, and what should come."""

    row: RenderedRow
    prompt: list[int]

    @property
    def wanted(self) -> str:
        return self.row.reference.strip()

    @property
    def references(self) -> list[str]:
        """All answers that are right; the first is `wanted`."""
        return [self.wanted, *(text.strip() for text in self.row.references)]

    def is_right(self, answer: str) -> bool:
        return answer in self.references

    def answer(self, text: str) -> str:
        """The generated text, as it is compared."""
        return text.strip().removesuffix(self.row.ending.strip()).strip()


@dataclass(frozen=True)
class Quiz:
    """All rows that can be asked.

    max_new_tokens: most tokens of an answer.
    notices: sentences for the user on rows that cannot be asked.
    """

    questions: list[Question]
    max_new_tokens: int
    stops: Stops
    notices: list[str] = field(default_factory=list)


def quiz(base: LoadedModel, examples: Sequence[Example], max_new_tokens: int | None = None) -> Quiz:
    """The questions in `examples`; none where the rows are plain text.

    max_new_tokens: by default the longest reference and a few tokens more.
    """
    rows = [e.source for e in examples if e.source is not None and _asks(e.source)]
    prompts = prompt_ids(rows, base.tokenizer)
    answers = TextEncoder(base.tokenizer).ids(row.reference for row in rows)
    limit = base.max_length
    kept, long = [], []
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        fits = limit is None or len(prompt) + len(answer) < limit
        (kept if fits else long).append((Question(row, prompt), len(answer)))
    lines = []
    if long:
        lines.append(
            f"exact match leaves out {len(long)} rows whose prompt and answer are longer than the "
            f"base's context of {limit} tokens: {listed(q.row.where for q, _ in long)}"
        )
    longest = max((length for _, length in kept), default=0)
    ends = {q.row.ending for q, _ in kept}
    stops = stops_of(base, (end.strip() for end in ends))
    return Quiz([q for q, _ in kept], max_new_tokens or longest + SPARE, stops, lines)


def take(base: LoadedModel, asked: Quiz, *, batch_size: int = 16) -> tuple[list[str], list[str]]:
    """The model's greedy answers, as they are compared; and named lines on those cut short."""
    if not asked.questions:
        return [], []
    done = generate_from_ids(
        base,
        [question.prompt for question in asked.questions],
        Sampling(max_new_tokens=asked.max_new_tokens),
        stops=asked.stops,
        batch_size=batch_size,
        conditions=conditions_of(base, [question.row for question in asked.questions]),
    )
    pairs = zip(asked.questions, done.texts, strict=True)
    return [question.answer(text) for question, text in pairs], done.notices


def conditions_of(base: LoadedModel, rows: Sequence[RenderedRow]) -> list[str] | None:
    """The condition of each row, if the active adapter takes one."""
    told = [row.condition for row in rows if row.condition is not None]
    return told if told and conditioned(base.model) else None


def _asks(row: RenderedRow) -> bool:
    return row.kind in KINDS and bool(row.prompt) and bool(row.reference.strip())
