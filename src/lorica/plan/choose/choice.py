"""The whole choice: data first, then the flowchart, the settings, and what was ruled out."""

from dataclasses import dataclass, replace
from typing import Any

from lorica.errors import ResourceError
from lorica.plan.choose.alternatives import doubts_of, ruled_out
from lorica.plan.choose.condition_kind import condition_kind
from lorica.plan.choose.fit import Fit, fit, least
from lorica.plan.choose.flowchart import Edge, Path, walk
from lorica.plan.choose.quality import Finding, findings
from lorica.plan.choose.questions import with_rank
from lorica.plan.choose.rank import Rank, choose_rank
from lorica.plan.choose.rate import choose_rate
from lorica.plan.choose.reason import Reason, gib
from lorica.plan.choose.run_length import choose_length
from lorica.plan.choose.serving import about_serving
from lorica.plan.choose.situation import Situation
from lorica.recipe.catalogue import method as catalogued


@dataclass(frozen=True)
class Choice:
    """edge: that decided. settings: of the recipe, without base, data and output; reasons: one for
    each of them and more. doubts: what the evidence does not separate. each: one run for each
    condition. tried: what --try has tried, in a sentence."""

    findings: tuple[Finding, ...]
    edge: Edge
    path: tuple[Reason, ...]
    rank: Rank
    settings: dict[str, Any]
    reasons: tuple[Reason, ...]
    ruled_out: tuple[Reason, ...]
    doubts: tuple[Reason, ...]
    serving: tuple[Reason, ...]
    peak: int | None
    each: bool
    tried: str = ""

    @property
    def method(self) -> str:
        return self.settings["method"]["name"]


def choose(situation: Situation) -> Choice:
    """Decide everything.

    Raises: ResourceError if not even 4-bit weights at the lowest rank fit the memory.
    """
    rank = choose_rank(situation)
    path = walk(situation, rank)
    edge = path.edge
    method = with_rank(edge.method, rank.r)
    fitted = _fitted(situation, {"method": method}, edge)
    r = method.get("target_r", method.get("r"))
    if fitted.r is not None:
        r = method["r"] = fitted.r
    if edge.method not in ("full", "mora"):  # those have no alpha
        method["alpha"] = 2 * method["r"]
    kind = condition_kind(situation.rows.conditions) if edge.method == "hyperlora" else None
    if kind is not None:
        method["condition"] = kind.value
    rate = choose_rate(edge.method, catalogued(edge.method).facts, r, situation.base)
    length = choose_length(situation)
    settings = {"method": method, **fitted.settings}
    if situation.kind == "cuda":
        settings["dtype"] = "bfloat16"
    if edge.method != "full":
        settings["target_modules"] = "all-linear"
    settings |= {reason.what: reason.value for reason in (rate, *length)}
    about = _about_method(path, settings, rank)
    reasons = (*about, *([kind] if kind else ()), rate, *length, *fitted.reasons)
    return Choice(
        tuple(findings(situation.rows)),
        edge,
        path.reasons,
        rank,
        settings,
        reasons,
        tuple(ruled_out(situation, edge, r)),
        tuple(doubts_of(situation, edge, rank, r)),
        tuple(about_serving(situation, edge)),
        fitted.peak,
        edge.each or (edge.quantised and situation.several_conditions),
    )


def _fitted(situation: Situation, settings: dict[str, Any], edge: Edge) -> Fit:
    fitted = fit(situation, settings, quantised=edge.quantised)
    if fitted is not None:
        return fitted
    assert situation.memory is not None
    needed = least(situation, settings, quantised=True)
    raise ResourceError(
        f"no training of {situation.base.name} fits: {situation.device} has "
        f"{gib(situation.memory)}.",
        least=f"{gib(needed)}, with 4-bit weights, r=4, one row at a time and recomputed "
        "activations",
        fix="a smaller base, shorter rows (--data.max_length), or more memory (--memory)",
    )


def _about_method(path: Path, settings: dict[str, Any], rank: Rank) -> list[Reason]:
    """Reasons for the method's own settings, dtype, weights and targets."""
    method, edge = settings["method"], path.edge
    reasons = [Reason("method", method["name"], path.reasons[-1].why, edge.evidence)]
    if "quantisation" in settings:
        why = "the linear layers take 4.13 bits a weight; unpacking them takes time"
        reasons.append(Reason("quantisation", "nf4", why, ("rule-memory", "claims-nf4")))
    if edge.method == "hyperlora":
        why = "one network for all conditions, with the parameters of a LoRA of 17 times this rank"
        reasons.append(Reason("r", method["r"], why, ("results-hyperlora",)))
    elif "target_r" in method:
        reasons += [replace(r, what="target_r") if r.what == "r" else r for r in rank.reasons]
        why = f"it starts at r={method['r']}, and prunes to {method['target_r']} on average"
        reasons.append(Reason("r", method["r"], why, ("results-adalora", "paper-adalora")))
    elif "r" in method:
        reasons += rank.reasons
    if "alpha" in method:
        why = "twice the rank: the rule of thumb, with which the rates were measured"
        reasons.append(Reason("alpha", method["alpha"], why, ("article-alpha", "results-defaults")))
    if "target_modules" in settings:
        why = "all linear layers but the head: better than queries and values alone"
        reasons.append(
            Reason(
                "target_modules",
                "all-linear",
                why,
                ("article-layers", "paper-qlora", "rule-label-tokens"),
            )
        )
    if "dtype" in settings:
        why = "half the memory of float32, and fast on a GPU; adapters stay in float32"
        reasons.append(Reason("dtype", "bfloat16", why, ("rule-memory",)))
    return reasons
