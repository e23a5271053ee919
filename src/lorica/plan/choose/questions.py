"""The questions of the flowchart: tests on the rows and the machine, answered in words."""

from dataclasses import dataclass
from typing import Any

from lorica.plan.choose.fit import fit, least
from lorica.plan.choose.rank import FEW_CLASSES, Rank, break_even, parameters_per_rank
from lorica.plan.choose.reason import gib, percent
from lorica.plan.choose.situation import Situation

RANDOM = 1.0
"""From this `Rows.structure` on, answers count as random: nothing but memorising helps."""
LOW = 4
"""Ranks at which DoRA was measured to learn more than LoRA."""


@dataclass(frozen=True)
class Answer:
    """Whether an edge is taken, and why, with the numbers."""

    yes: bool
    why: str


def with_rank(method: str, r: int) -> dict[str, Any]:
    """The settings of a method at a rank."""
    match method:
        case "full":
            return {"name": "full"}
        case "adalora":  # pruned to r on average
            return {"name": "adalora", "r": max(r * 3 // 2, r + 1), "target_r": r}
        case "hyperlora":  # its network has the parameters of a LoRA of 17 times the rank
            return {"name": "hyperlora", "r": min(r, 8)}
        case _:
            return {"name": method, "r": r}


def fits(situation: Situation, method: str, r: int) -> bool:
    """Whether a method trains in the memory without 4-bit weights."""
    return fit(situation, {"method": with_rank(method, r)}) is not None


def serves_lora_alone(situation: Situation) -> bool:
    return situation.serve in ("vllm", "llamacpp")


def memory_is_extreme(situation: Situation, rank: Rank) -> Answer:
    if situation.memory is None or situation.peak is None:
        return Answer(False, "no limit of memory is known")
    settings = {"method": with_rank("lora", rank.r)}
    room = f"{situation.device} has {gib(situation.memory)}"
    fitting = fit(situation, settings)
    if fitting is None:
        needed = gib(least(situation, settings))
        return Answer(
            True,
            f"LoRA takes {needed} with one row at a time and recomputed activations, and {room}",
        )
    assert fitting.peak is not None
    return Answer(False, f"LoRA takes {gib(fitting.peak)} without them, and {room}")


def hyperlora_serves_conditions(situation: Situation, rank: Rank) -> Answer:
    rows = situation.rows
    if not situation.several_conditions:
        return Answer(False, _about_conditions(situation))
    count = len(rows.conditions)
    if rows.kind == "label":
        return Answer(False, f"{count} conditions, but the rows have classes")
    if situation.goal in ("small", "fast"):
        return Answer(
            False,
            f"{count} conditions, but --goal {situation.goal}: its network is "
            "larger than a LoRA, and generates one in each step",
        )
    if not fits(situation, "hyperlora", rank.r):
        return Answer(False, f"{count} conditions, but HyperLoRA's network does not fit")
    return Answer(True, f"the rows have {count} conditions, and one network fits for all of them")


def each_condition_alone(situation: Situation, rank: Rank) -> Answer:
    if not situation.several_conditions:
        return Answer(False, _about_conditions(situation))
    return Answer(
        True,
        f"{len(situation.rows.conditions)} conditions without a network for them: "
        "one LoRA for each",
    )


def _about_conditions(situation: Situation) -> str:
    match list(situation.rows.conditions):
        case []:
            return "the rows have no column condition"
        case [name]:
            return f"all rows have the one condition {name!r}"
        case names:
            return f"the rows have {len(names)} conditions"


def forgetting_counts(situation: Situation, rank: Rank) -> Answer:
    if situation.goal != "forget-less":
        return Answer(False, f"--goal is {situation.goal}")
    if not fits(situation, "adalora", rank.r):
        return Answer(False, "--goal forget-less, but AdaLoRA's higher ranks do not fit")
    return Answer(True, "--goal forget-less: AdaLoRA forgot 27 % less than LoRA at the same loss")


def no_rank_is_enough(situation: Situation, rank: Rank) -> Answer:
    if rank.reached:
        tokens = situation.rows.label_tokens
        return Answer(
            False,
            f"r={rank.wanted} has more parameters than the {tokens:,} label tokens"
            if not rank.unknown
            else "rows with classes ask for few parameters",
        )
    if situation.goal != "quality":
        return Answer(False, f"no rank reaches the label tokens, but --goal is {situation.goal}")
    if serves_lora_alone(situation):
        return Answer(
            False,
            f"no rank reaches the label tokens, but {situation.engine} reads LoRA adapters only",
        )
    if not fits(situation, "full", rank.r):
        return Answer(False, "no rank reaches the label tokens, but full fine-tuning does not fit")
    return Answer(
        True,
        f"no rank reaches the {situation.rows.label_tokens:,} label tokens (LoRA "
        f"has {rank.r * parameters_per_rank(situation.base):,} parameters at r={rank.r}, "
        f"as many as the layers at r={break_even(situation.base)}), and full "
        "fine-tuning fits",
    )


def rank_is_unknown(situation: Situation, rank: Rank) -> Answer:
    if not rank.unknown:
        return Answer(False, "the label tokens set the rank")
    count = len(situation.rows.classes)
    if count <= FEW_CLASSES:
        return Answer(False, f"{count} classes are a simple task: a low rank is enough")
    if situation.goal in ("small", "fast"):
        return Answer(False, f"{count} classes, but --goal {situation.goal} sets the rank")
    if not fits(situation, "adalora", rank.r):
        return Answer(False, f"{count} classes, but AdaLoRA's higher ranks do not fit")
    return Answer(
        True,
        f"{count} classes and no label tokens to count: which layers need rank is "
        "not known before training",
    )


def answers_are_memorised(situation: Situation, rank: Rank) -> Answer:
    structure = situation.rows.structure
    if situation.rows.kind == "label":
        return Answer(False, "the rows have classes")
    if structure is None:
        return Answer(
            False,
            "whether the answers are random is not known: too little text, or no tokenizer",
        )
    if structure < RANDOM:
        return Answer(
            False,
            f"the answers have structure: compressed, they take {percent(structure)} "
            "of the bits of their characters",
        )
    if serves_lora_alone(situation):
        return Answer(
            False, f"the answers are random texts, but {situation.engine} reads LoRA adapters only"
        )
    if not fits(situation, "mora", rank.r):
        return Answer(False, "the answers are random texts, but MoRA does not fit")
    return Answer(
        True,
        f"the answers do not compress ({percent(structure)} of the bits of their "
        "characters): they can only be memorised",
    )


def low_rank_must_do(situation: Situation, rank: Rank) -> Answer:
    if rank.r > LOW:
        return Answer(
            False, f"r={rank.r}: DoRA was measured to learn more than LoRA up to r={LOW} only"
        )
    if rank.wanted is not None and rank.wanted <= rank.r:
        return Answer(False, f"r={rank.r} is low, and enough for these rows")
    if situation.goal == "fast":
        return Answer(False, "--goal fast: a step of DoRA takes longer")
    if serves_lora_alone(situation):
        return Answer(False, f"{situation.engine} reads LoRA adapters only, and DoRA is none")
    if not fits(situation, "dora", rank.r):
        return Answer(False, "DoRA does not fit")
    return Answer(
        True,
        f"the rows ask for more than r={rank.r}, which --goal {situation.goal} "
        "sets: DoRA learns slightly more at such ranks",
    )


def otherwise(situation: Situation, rank: Rank) -> Answer:
    return Answer(True, "the simplest method, which every engine reads")
