"""A published flowchart, each edge decided by a test on the rows and the machine.

The article asks: is memory extremely limited (QLoRA)? Several tasks or conditions (HyperLoRA, with
few resources another way)? More expressiveness (DoRA)? Otherwise LoRA. Four edges are added: full
fine-tuning where no rank is enough, AdaLoRA where forgetting counts or the rank is unknown, and
MoRA where the answers must be memorised. The first edge whose test says yes decides.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lorica.plan.choose import questions
from lorica.plan.choose.questions import Answer
from lorica.plan.choose.rank import Rank
from lorica.plan.choose.reason import Reason
from lorica.plan.choose.situation import Situation


@dataclass(frozen=True)
class Edge:
    """question: for the reader. method: that it leads to. quantised: on 4-bit weights. each: one
    adapter for each condition. evidence: of a yes; against: of a no."""

    name: str
    question: str
    method: str
    test: Callable[[Situation, Rank], Answer]
    evidence: tuple[str, ...]
    against: tuple[str, ...] = ()
    quantised: bool = False
    each: bool = False


@dataclass(frozen=True)
class Path:
    """The edge that decided, and the answers on the way to it."""

    edge: Edge
    reasons: tuple[Reason, ...]


EDGES = (
    Edge(
        "extreme memory",
        "Is the memory too small without 4-bit weights?",
        "lora",
        questions.memory_is_extreme,
        ("paper-qlora", "results-nf4", "claims-nf4"),
        ("rule-memory",),
        quantised=True,
    ),
    Edge(
        "conditions",
        "Do the rows have several conditions, and does HyperLoRA fit?",
        "hyperlora",
        questions.hyperlora_serves_conditions,
        ("article-flowchart", "paper-hyperlora"),
    ),
    Edge(
        "one adapter each",
        "Do the rows have several conditions all the same?",
        "lora",
        questions.each_condition_alone,
        ("rule-each",),
        each=True,
    ),
    Edge(
        "forgetting",
        "Does forgetting count more than quality?",
        "adalora",
        questions.forgetting_counts,
        ("results-adalora", "results-lora"),
    ),
    Edge(
        "capacity",
        "Is no rank enough, and does full fine-tuning fit?",
        "full",
        questions.no_rank_is_enough,
        ("rule-label-tokens", "results-full", "claims-learns-less", "paper-learns-less"),
    ),
    Edge(
        "budget unknown",
        "Is the rank unknown?",
        "adalora",
        questions.rank_is_unknown,
        ("article-flowchart", "paper-adalora"),
    ),
    Edge(
        "memorising",
        "Are the answers random texts to memorise?",
        "mora",
        questions.answers_are_memorised,
        ("claims-mora", "paper-mora"),
    ),
    Edge(
        "expressiveness",
        "Must a low rank do for rows that ask for more?",
        "dora",
        questions.low_rank_must_do,
        ("claims-dora-low", "paper-dora"),
        ("claims-dora-8",),
    ),
    Edge(
        "otherwise",
        "Does none of these apply?",
        "lora",
        questions.otherwise,
        ("article-flowchart", "paper-variants"),
    ),
)


def walk(situation: Situation, rank: Rank) -> Path:
    """The first edge whose test says yes; the last one always does."""
    reasons: list[Reason] = []
    for edge in EDGES:
        answer = edge.test(situation, rank)
        cited = edge.evidence if answer.yes else edge.against
        reasons.append(Reason(edge.question, answer.yes, answer.why, cited))
        if answer.yes:
            return Path(edge, tuple(reasons))
    raise AssertionError("the last edge says yes")
