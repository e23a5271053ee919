"""The rank: the smallest whose LoRA parameters reach the label tokens of the rows.

LoRA learns as much as full fine-tuning while it has at least as many parameters as there are label
tokens to learn ("LoRA Without Regret", docs/guides/choose.md). Ranks are the powers of two from 4
to 256. On a small base the highest useful rank is lower: at the rank `break_even`, LoRA has as many
parameters as the layers themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lorica.plan.choose.reason import Reason
from lorica.plan.choose.situation import Base, Situation

RANKS = (4, 8, 16, 32, 64, 128, 256)
FEW_CLASSES = 4
FAST = 8  # the highest rank under --goal fast
BANDS = {"low (1 to 8)": (1, 8), "moderate (8 to 32)": (8, 32), "high (32 and above)": (32, 10**6)}


@dataclass(frozen=True)
class Rank:
    """r: the rank to take. wanted: the one that the rows ask for; None: no rank reaches their label
    tokens, or (unknown) they have none to count. reasons: the rule, then the article's band."""

    r: int
    wanted: int | None
    unknown: bool
    reasons: tuple[Reason, ...]

    @property
    def reached(self) -> bool:
        """Whether the parameters at `wanted` reach the label tokens."""
        return self.wanted is not None


def parameters_per_rank(base: Base) -> int:
    """Parameters of LoRA with rank 1 on every linear layer but the head: the sum of I + O."""
    return sum(inputs + outputs for inputs, outputs in base.layers)


def break_even(base: Base) -> int:
    """The rank at which LoRA has as many parameters as the layers that it acts on."""
    weights = sum(inputs * outputs for inputs, outputs in base.layers)
    return max(weights // max(parameters_per_rank(base), 1), 1)


def ranks_of(base: Base) -> tuple[int, ...]:
    """The ranks to choose from on this base; at least 4."""
    return tuple(r for r in RANKS if r <= break_even(base)) or RANKS[:1]


def highest_rank(situation: Situation) -> int:
    """The highest rank that the base and the goal allow."""
    most = {"small": RANKS[0], "fast": FAST}.get(situation.goal, RANKS[-1])
    return min(ranks_of(situation.base)[-1], most)


def choose_rank(situation: Situation) -> Rank:
    """The rank for these rows, under the goal."""
    rows, ranks = situation.rows, ranks_of(situation.base)
    band = article_band(situation)
    if rows.kind == "label":
        r = 8 if len(rows.classes) <= FEW_CLASSES else 16
        r = max(x for x in ranks if x <= r or x == ranks[0])
        why = (
            f"rows with classes have no label tokens to count; {len(rows.classes)} classes are "
            + ("a simple task" if len(rows.classes) <= FEW_CLASSES else "more than a simple task")
        )
        wanted, unknown, rule = r, True, Reason("r", r, why, ("article-ranks",))
    else:
        wanted, unknown, rule = _by_label_tokens(situation, ranks)
        r = ranks[-1] if wanted is None else wanted
    reasons = [rule]
    most = highest_rank(situation)
    if r > most:
        r = most
        cut = f"--goal {situation.goal}: at most {most}, although the rows ask for more"
        reasons.append(Reason("r", r, cut, ("claims-lora-ranks",)))
    reasons.append(_beside_the_article(r, band))
    return Rank(r, wanted, unknown, tuple(reasons))


def _by_label_tokens(situation: Situation, ranks: Sequence[int]) -> tuple[int | None, bool, Reason]:
    tokens, each = situation.rows.label_tokens, parameters_per_rank(situation.base)
    reaching = [r for r in ranks if r * each >= tokens]
    if reaching:
        r = reaching[0]
        why = f"{tokens:,} label tokens; LoRA has {r * each:,} parameters at r={r}"
        if r > ranks[0]:
            why += f", and {r // 2 * each:,} at r={r // 2}"
        return r, False, Reason("r", r, why, ("rule-label-tokens",))
    most = ranks[-1]
    why = f"no rank reaches the {tokens:,} label tokens: r={most} has {most * each:,} parameters"
    if most < RANKS[-1]:
        why += (
            f", and from r={break_even(situation.base)} on LoRA has more parameters than the layers"
        )
    return None, False, Reason("r", most, why, ("rule-label-tokens",))


def article_band(situation: Situation) -> str:
    """The band of ranks that the article gives for a task like this one."""
    rows = situation.rows
    if rows.kind == "label" and len(rows.classes) <= FEW_CLASSES:
        return "low (1 to 8)"
    return "high (32 and above)" if rows.kind == "text" else "moderate (8 to 32)"


def _beside_the_article(r: int, band: str) -> Reason:
    low, high = BANDS[band]
    task = {
        "low (1 to 8)": "a simple classification",
        "moderate (8 to 32)": "varied answers",
        "high (32 and above)": "plain text, perhaps of a new domain",
    }[band]
    verdict = "agrees" if low <= r <= high else "differs: the count of label tokens decides"
    why = f"the article's band for {task}; r={r} {verdict}"
    return Reason("band", band, why, ("article-ranks",))
