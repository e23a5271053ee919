"""The rows that a model is asked, and its answers, which tasks compare with the references.

A row may have several references; white space at the ends is ignored. The prompt is tokenized as
in training, and the template's end of turn is removed from answer and reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorica.base.load import LoadedModel
from lorica.core.condition import is_conditioned
from lorica.data.example import Example
from lorica.data.rendered_row import RenderedRow
from lorica.data.text_encoder import TextEncoder, prompt_ids
from lorica.errors import counted, listed
from lorica.generation.generate import generate_from_ids
from lorica.generation.sampling import Sampling
from lorica.generation.stops import stops_of

KINDS = ("alpaca", "prompt", "messages", "sharegpt")
SPARE_TOKENS = 16
"""By how many tokens an answer may be longer than the longest reference."""


@dataclass(frozen=True)
class Question:
    """One row that the model is asked, and the ids of its prompt."""

    row: RenderedRow
    prompt: list[int]

    @property
    def reference(self) -> str:
        return self.row.reference.strip()

    @property
    def references(self) -> list[str]:
        """All correct answers; the first is `reference`."""
        return [self.reference, *(text.strip() for text in self.row.references)]

    def answer_of(self, text: str) -> str:
        """The part of the generated text that is compared."""
        return text.strip().removesuffix(self.row.ending.strip()).strip()


@dataclass(frozen=True)
class QuestionSet:
    """All rows of a data set that the model can be asked.

    max_new_tokens: of an answer.
    notices: sentences for the user on rows that are left out.
    """

    questions: list[Question]
    max_new_tokens: int
    notices: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[RenderedRow]:
        return [question.row for question in self.questions]


def question_set(
    loaded: LoadedModel, examples: Sequence[Example], max_new_tokens: int | None = None
) -> QuestionSet:
    """The questions in `examples`; none where the rows are plain text.

    max_new_tokens: by default that of the longest reference, and SPARE_TOKENS.
    """
    rows = [e.source for e in examples if e.source is not None and is_question(e.source)]
    prompts = prompt_ids(rows, loaded.tokenizer)
    references = TextEncoder(loaded.tokenizer).ids(row.reference for row in rows)
    limit, longest = loaded.max_length, 0
    questions, too_long = [], []
    for row, prompt, reference in zip(rows, prompts, references, strict=True):
        if limit is not None and len(prompt) + len(reference) >= limit:
            too_long.append(row.where)
        else:
            questions.append(Question(row, prompt))
            longest = max(longest, len(reference))
    notices = []
    if too_long:
        notices.append(
            f"no answer is written for {counted(len(too_long), 'row')} whose prompt and answer are "
            f"longer than the base's context of {limit} tokens: {listed(too_long)}"
        )
    return QuestionSet(questions, max_new_tokens or longest + SPARE_TOKENS, notices)


def answer_questions(
    loaded: LoadedModel, asked: QuestionSet, *, batch_size: int = 16
) -> tuple[list[str], list[str]]:
    """(the model's greedy answers, ready to compare; notices on answers that were cut)."""
    questions = asked.questions
    if not questions:
        return [], []
    rows = asked.rows
    generation = generate_from_ids(
        loaded,
        [question.prompt for question in questions],
        Sampling(max_new_tokens=asked.max_new_tokens),
        stops=stops_of(loaded, {row.ending.strip() for row in rows}),
        batch_size=batch_size,
        conditions=_conditions_of(loaded, rows),
    )
    pairs = zip(questions, generation.texts, strict=True)
    return [question.answer_of(text) for question, text in pairs], generation.notices


def _conditions_of(loaded: LoadedModel, rows: Sequence[RenderedRow]) -> list[str] | None:
    """The condition of each row, if the active adapter takes one."""
    conditions = [row.condition for row in rows if row.condition is not None]
    return conditions if conditions and is_conditioned(loaded.model) else None


def is_question(row: RenderedRow) -> bool:
    """Whether a model can be asked the row: it has a prompt and a reference."""
    return row.kind in KINDS and bool(row.prompt) and bool(row.reference.strip())
