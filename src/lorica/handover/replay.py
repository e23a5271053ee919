"""Replay recorded answers on a model that is served elsewhere, and say what is wrong with it.

At chosen places of each recorded answer the model is asked for the token that comes next, after
the recorded ids: its log-probability must be the recorded one. Ids, not text, so that a difference
is the model's. Then each prompt is asked as a user would, as text or as a conversation, and each
answer must end where it ended. The same places are asked of the base, whose difference is the
runtime's own arithmetic: three times as much is allowed to an adapter.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from lorica.errors import counted, listed
from lorica.formats.golden import Golden, GoldenRow

PLACES = 6
"""Of an answer: those at which adapter and base differ most."""
FLOOR = 0.01
"""Nats. Processors and kernels differ by less in float32."""
UNKNOWN = 0.05
"""Nats; allowed where the base is not served, so that the runtime's own difference is not known."""
OTHER_BASE = 0.5
"""Nats. A base in 8 bits differs by less, another one by more."""
SPARE_TOKENS = 8
HALF = math.log(0.5)


@dataclass(frozen=True)
class Answer:
    """text: of a greedy answer, without its stop. has_stopped: it ended by itself."""

    text: str
    has_stopped: bool


@dataclass(frozen=True)
class Opening:
    """Of a prompt that is given as text or as messages: tokens, and the log-probability of the most
    probable next token; None: not known."""

    tokens: int | None
    logprob: float | None


class Served(Protocol):
    """A model and its base, wherever they are. Log-probabilities are of the most probable token."""

    def logprob_after(self, ids: Sequence[int], *, adapted: bool) -> float | None:
        """Of what follows `ids`, under the adapter or the base; None: that base is not served.

        NaN: the answer ended at once, and servers do not give the log-probability of a stop.
        """
        ...

    def answer(self, ids: Sequence[int], max_tokens: int) -> Answer:
        """The greedy answer to a prompt."""
        ...

    def opening(self, row: GoldenRow) -> Opening | None:
        """The prompt of a row as a user gives it; None: it cannot be asked here."""
        ...


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One adapter as it is served.

    worst, allowed: largest difference of a log-probability from the recorded one, in nats.
    base_worst: of the base; None: it is not served. effect: how far the adapter moves them.
    places: how many were compared. problems: what is wrong; []: nothing.
    """

    name: str
    worst: float
    allowed: float
    base_worst: float | None
    effect: float
    places: int
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, which has no infinity: a difference that has no number is null."""
        fields = asdict(self)
        endless = [key for key, value in fields.items() if value == math.inf]
        return {**fields, **dict.fromkeys(endless), "right": not self.problems}


@dataclass(frozen=True)
class _Place:
    """ids: before it. adapted, base: the recorded log-probabilities."""

    ids: tuple[int, ...]
    adapted: float
    base: float


def replayable(golden: Golden) -> list[GoldenRow]:
    """The rows that a model can be asked: prompt and answer are known, and what the base says."""
    return [row for row in golden.rows if row.answer and row.base_logprobs is not None]


def replay(golden: Golden, served: Served, name: str, *, in_float32: bool = False) -> Verdict:
    """Compare what `served` answers with what was recorded. Raises: what `served` raises.

    in_float32: `served` computes in float32, as the recording did: nothing but FLOOR is allowed.
    """
    other_base = FLOOR if in_float32 else OTHER_BASE
    rows = replayable(golden)
    places = [place for row in rows for place in _places(row)]
    actual = [served.logprob_after(place.ids, adapted=True) for place in places]
    base_worst = _base_worst(served, places)
    # All answers may end at once: then only their stops, and the prompts, are compared.
    worst = _worst(actual, [place.adapted for place in places]) if places else 0.0
    effect = _worst([p.adapted for p in places], [p.base for p in places]) if places else 0.0
    allowed = FLOOR
    if not in_float32:
        allowed = UNKNOWN if base_worst is None else max(FLOOR, 3 * min(base_worst, OTHER_BASE))
    if golden.header is not None:
        allowed = max(allowed, 2 * golden.header.difference)
    problems, notices = _problems_of_base(base_worst, other_base)
    if not worst <= allowed:
        problems.append(_cause(actual, places, worst, allowed))
    if not problems:
        for others, more in (_openings(rows, served, allowed), _stops(rows, served)):
            problems += others
            notices += more
    if not problems and allowed > effect / 3:
        notices.append(
            f"a fault of the adapter could hide: it moves log-probabilities by up to {effect:.3g} "
            f"nats, and {allowed:.3g} are allowed"
        )
    return Verdict(
        name=name,
        worst=worst,
        allowed=allowed,
        base_worst=base_worst,
        effect=effect,
        places=sum(value is not None and not math.isnan(value) for value in actual),
        problems=problems,
        notices=notices,
    )


def _base_worst(served: Served, places: Sequence[_Place]) -> float | None:
    """The largest difference of the base; None: it is not served, or ends at every place.

    The base's best token may be a stop: there nothing is compared.
    """
    base = [served.logprob_after(place.ids, adapted=False) for place in places]
    pairs = zip(base, places, strict=True)
    known = [(b, p.base) for b, p in pairs if b is not None and not math.isnan(b)]
    return _worst([b for b, _ in known], [recorded for _, recorded in known]) if known else None


def _problems_of_base(worst: float | None, other: float) -> tuple[list[str], list[str]]:
    """(problems, notices) on the base. worst: see `_base_worst`; other: more is another base."""
    if worst is None:
        return [], ["the base is not served by itself: its own difference is not known"]
    what = f"the base differs by up to {worst:.3g} nats from the recorded one"
    if worst > other:
        few = ", or quantised to few bits" if other >= OTHER_BASE else ""
        return [f"{what}: it is another one{few}"], []
    if worst > FLOOR:
        return [], [f"{what}, as one in fewer bits does: three times as much is allowed"]
    return [], []


def answers_as(golden: Golden, served: Served, allowed: float) -> bool:
    """Whether `served` answers as another adapter did, of which these are the recorded answers."""
    places = [place for row in replayable(golden) for place in _places(row)[:2]]
    actual = [served.logprob_after(place.ids, adapted=True) for place in places]
    return bool(places) and _worst(actual, [place.adapted for place in places]) <= allowed


def _places(row: GoldenRow) -> list[_Place]:
    """The places of an answer at which adapter and base differ most, in order; not its stop."""
    assert row.base_logprobs is not None
    pairs = list(zip(row.answer_logprobs, row.base_logprobs, strict=True))
    count = len(pairs) - (row.ended == "stop")
    far = sorted(range(count), key=lambda i: -abs(pairs[i][0] - pairs[i][1]))[:PLACES]
    before = len(row.ids) - len(pairs)
    return [_Place(row.ids[: before + i], *pairs[i]) for i in sorted(far)]


def _worst(actual: Sequence[float | None], recorded: Sequence[float]) -> float:
    """The largest difference; infinity if an answer ended where another token is more probable than
    all others together, or if none can be compared."""
    pairs = [(a, r) for a, r in zip(actual, recorded, strict=True) if a is not None]
    if any(math.isnan(a) and r > HALF for a, r in pairs):
        return math.inf
    return max((abs(a - r) for a, r in pairs if not math.isnan(a)), default=math.inf)


def _cause(
    actual: Sequence[float | None], places: Sequence[_Place], worst: float, allowed: float
) -> str:
    """What the differences look like, in words."""
    if math.isinf(worst):
        return "the adapter acts otherwise than in training: answers end where recorded ones go on"
    what = f"log-probabilities differ by up to {worst:.3g} nats, {allowed:.3g} are allowed"
    if _worst(actual, [place.base for place in places]) <= allowed:
        return f"the adapter does not act: the answers are those of the base ({what})"
    return f"the adapter acts otherwise than in training: {what}"


def _openings(
    rows: Sequence[GoldenRow], served: Served, allowed: float
) -> tuple[list[str], list[str]]:
    """(problems, notices): prompts that become other tokens there than in training."""
    other, compared = [], 0
    for number, row in enumerate(rows, start=1):
        opening = served.opening(row)
        if opening is None or row.prompt is None:
            continue
        compared += (opening.tokens, opening.logprob) != (None, None)
        if opening.tokens is not None and opening.tokens != row.prompt:
            other.append(f"prompt {number} has {opening.tokens} tokens, not {row.prompt}")
        elif opening.logprob is not None and (
            abs(opening.logprob - row.answer_logprobs[0]) > allowed
        ):
            other.append(f"prompt {number} has another answer as text than as token ids")
    what = "chat template" if any(row.messages for row in rows) else "text of the prompts"
    if not compared:
        return [], [f"the {what} is not compared: neither answers nor tokens of a prompt are known"]
    if not other:
        return [], []
    return [f"the {what} is not that of the training: {listed(other, 3)}"], []


def _stops(rows: Sequence[GoldenRow], served: Served) -> tuple[list[str], list[str]]:
    """(problems, notices): answers that go on behind the stop of the training.

    A stop that was less probable than all other tokens together may have lost a near tie. Where
    the stop is missing, all such answers go on; one that goes on beside others is a notice.
    """
    ended = [row for row in rows if row.ended == "stop" and row.text is not None]
    if not ended:
        return [], ["stop tokens are not compared: no recorded answer ends in one"]
    outcomes = [(row, _goes_on(row, served)) for row in ended]
    beyond = [row for row, goes_on in outcomes if goes_on]
    if not beyond:
        return [], []
    what = f"{counted(len(beyond), 'answer')} did not end at the stop token of the training"
    is_sure = any(row.answer_logprobs[-1] > HALF for row in beyond)
    same_text = sum(goes_on is not None for _, goes_on in outcomes)
    if is_sure or len(beyond) == same_text > 1:
        return [f"{what}: it is missing from the settings of the server"], []
    return [], [f"{what}, where other tokens are nearly as probable"]


def _goes_on(row: GoldenRow, served: Served) -> bool | None:
    """Whether an answer goes on behind its recorded end; None: it is another text."""
    answer = served.answer(row.ids[: row.prompt], len(row.answer) + SPARE_TOKENS)
    if not answer.text.strip().startswith((row.text or "").strip()):
        return None
    return not answer.has_stopped
