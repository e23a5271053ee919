"""The kinds of records in results.jsonl, with the fields of each.

A record that is not exactly of its kind is damaged: it was edited, or comes from another release.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from lorica import strict_json
from lorica.compare.results import Better

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Steps = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Curve = list[tuple[Steps, float]]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Scores(Record):
    """A measure: see results.MeasureScores. Each row has its weight and its statistics."""

    value: float
    better: Better
    rows: list[float] = Field(min_length=1)
    weights: list[Annotated[float, Field(ge=0)]] = []
    statistics: list[list[float]] = []

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        for name, values in (("weights", self.weights), ("statistics", self.statistics)):
            if values and len(values) != len(self.rows):
                raise ValueError(f"{len(self.rows):,} rows and {len(values):,} {name}")
        if len({len(row) for row in self.statistics}) > 1:
            raise ValueError("the statistics of its rows have different lengths")
        if self.weights and not any(self.weights):
            raise ValueError("all weights are 0")
        return self


class Start(Record):
    """settings: of the study. digests: of its rows, by name. base: of the base's files."""

    kind: Literal["start"]
    name: str
    settings: dict[str, Any]
    versions: dict[str, str]
    machine: str
    digests: dict[str, str]
    base: dict[str, str]
    notices: list[str]


class SideStart(Record):
    kind: Literal["side"]
    name: str
    method: str
    rank: Annotated[int, Field(ge=1)] | None
    settings: dict[str, Any]


class Base(Record):
    """error: why the base alone could not be scored."""

    kind: Literal["base"]
    scores: dict[str, Scores]
    samples: list[tuple[str, str, str]] = []
    answers: list[str] = []
    before_scores: Scores | None = None
    error: str | None = None


class TrialRecord(Record):
    kind: Literal["trial"]
    side: str
    learning_rate: Positive
    steps: Steps
    loss: float | None
    error: str | None = None


class Rate(Record):
    kind: Literal["rate"]
    side: str
    learning_rate: Positive | None
    notices: list[str] = []


class Sizes(Record):
    adapter_bytes: Annotated[int, Field(ge=0)]
    trained: Annotated[int, Field(ge=0)]
    total: Annotated[int, Field(ge=0)]


class FinalRecord(Record):
    """A final run: its scores, or why it ended early."""

    kind: Literal["final"]
    side: str
    seed: Seed
    learning_rate: Annotated[float, Field(ge=0)]
    scores: dict[str, Scores] = {}
    samples: list[tuple[str, str, str]] = []
    forgotten: float | None = None
    before_scores: Scores | None = None
    curve: Curve = []
    validation: Curve = []
    ranks: dict[str, int] = {}
    notices: list[str] = []
    sizes: Sizes | None = None
    error: str | None = None

    @model_validator(mode="after")
    def _check_outcome(self) -> Self:
        if self.error is None and not (self.scores and self.sizes):
            raise ValueError("it has neither scores with sizes nor an error")
        return self


class CostRecord(Record):
    """What a side costs, or why it could not be measured."""

    kind: Literal["cost"]
    side: str
    seconds_per_step: Positive | None = None
    tokens_per_second: Positive | None = None
    peak_memory_bytes: Annotated[int, Field(ge=0)] | None = None
    error: str | None = None

    @model_validator(mode="after")
    def _check_outcome(self) -> Self:
        if self.error is None and (self.seconds_per_step is None or self.tokens_per_second is None):
            raise ValueError("it has neither a time nor an error")
        return self


class Spent(Record):
    kind: Literal["spent"]
    sides: list[str]
    seconds: Annotated[float, Field(ge=0)]


class Workers(Record):
    """Processes that do the jobs, and threads of each: they decide how sums are rounded."""

    kind: Literal["workers"]
    size: Annotated[int, Field(ge=1, le=10**4)]
    threads: Annotated[int, Field(ge=1, le=10**3)]


AnyRecord = TypeAdapter(
    Annotated[
        Start | SideStart | Base | TrialRecord | Rate | FinalRecord | CostRecord | Spent | Workers,
        Field(discriminator="kind"),
    ]
)


def parse_record(line: str | bytes) -> dict[str, Any]:
    """A line of results.jsonl as plain data. Raises: ValueError with what is wrong in it."""
    record = strict_json.parse(line)
    try:
        AnyRecord.validate_json(line)
    except ValidationError as error:
        raise ValueError(_in_words(error)) from None
    return record


def _in_words(error: ValidationError) -> str:
    """The first mistake of a record, with the field that it is in."""
    detail = error.errors(include_url=False, include_input=False)[0]
    kind, *path = map(str, detail["loc"] or ("",))
    reason = detail["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if not path:
        return f"the {kind}: {reason}" if kind else f"its kind: {reason}"
    words = {"missing": "is missing", "extra_forbidden": "is no field of such a record"}
    return f"{'.'.join(path)} of the {kind} {words.get(detail['type'], f'is wrong: {reason}')}"
