"""The whole choice: data first, then the flowchart, the settings, and what was ruled out."""

from dataclasses import dataclass
from typing import Any

from lorica.errors import ResourceError
from lorica.plan.choose.condition_kind import condition_kind
from lorica.plan.choose.fit import Fit, fit, least
from lorica.plan.choose.flowchart import EDGES, Edge, walk
from lorica.plan.choose.quality import Finding, findings
from lorica.plan.choose.questions import serves_lora_alone, with_rank
from lorica.plan.choose.rank import Rank, choose_rank
from lorica.plan.choose.rate import choose_rate
from lorica.plan.choose.reason import Reason, gib
from lorica.plan.choose.run_length import choose_length
from lorica.plan.choose.situation import Situation
from lorica.recipe.catalogue import method as catalogued


@dataclass(frozen=True)
class Choice:
    """edge: that decided. settings: of the recipe, without base, data and output; reasons: one for
    each of them and more. doubts: what the evidence does not separate. each: one run for each
    condition."""

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
    about = _about_method(edge, settings, rank)
    reasons = (*about, *([kind] if kind else ()), rate, *length, *fitted.reasons)
    return Choice(
        tuple(findings(situation.rows)),
        edge,
        path.reasons,
        rank,
        settings,
        reasons,
        tuple(_ruled_out(situation, edge)),
        tuple(_doubts(situation, edge, rank)),
        tuple(_serving(situation, edge)),
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
        f"no training of {situation.base.name} fits {gib(situation.memory)} of {situation.device}.",
        least=f"{gib(needed)}, with 4-bit weights, r=4, one row at a time and recomputed "
        "activations",
        fix="a smaller base, shorter rows (--data.max_length), or more memory (--memory)",
    )


def _about_method(edge: Edge, settings: dict[str, Any], rank: Rank) -> list[Reason]:
    """Reasons for the method's own settings, dtype, weights and targets."""
    method = settings["method"]
    cited = edge.evidence
    reasons = [Reason("method", method["name"], f"decided by the question: {edge.question}", cited)]
    if "quantisation" in settings:
        why = "the linear layers take 4.13 bits a weight; unpacking them takes time"
        reasons.append(Reason("quantisation", "nf4", why, ("rule-memory", "claims-nf4")))
    if "r" in method:
        reasons += rank.reasons
    if "target_r" in method:
        why = f"AdaLoRA starts at r={method['r']} and prunes to {method['target_r']} on average"
        reasons.append(Reason("method.r", method["r"], why, ("paper-adalora",)))
    if edge.method == "hyperlora" and method["r"] < rank.r:
        why = "its network has the parameters of a LoRA of 17 times this rank"
        reasons.append(Reason("method.r", method["r"], why, ("results-hyperlora",)))
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


ALTERNATIVES = {
    "lora": ("results-lora",),
    "dora": ("results-dora", "claims-dora-8"),
    "adalora": ("results-adalora", "claims-adalora"),
    "hyperlora": ("results-hyperlora",),
    "mora": ("results-mora",),
    "full": ("results-full",),
    "double_lora": ("claims-double",),
    "prompt_tuning": ("results-prompt",),
}
"""Methods that a reader may expect, with what was measured of each."""


def _ruled_out(situation: Situation, edge: Edge) -> list[Reason]:
    """Why none of the methods that were not chosen is taken."""
    serve = situation.serve
    why = {
        "lora": f"another question comes first: {edge.question}",
        "dora": "no lower loss than LoRA from r=8 on (2.882 ± 0.022 and 2.879 ± 0.012), and a "
        "step takes 16 % longer",
        "adalora": "the same loss as LoRA (2.885 ± 0.021); it needs 1.5 times the parameters in "
        "training, and an export before other engines read it",
        "hyperlora": "it needs rows with several conditions, and does not read prompts",
        "mora": "no lower loss than LoRA (2.897 ± 0.008) unless answers must be memorised",
        "full": "it changes every weight: a whole model for each task, 16 bytes a parameter in "
        "training, and it forgets",
        "double_lora": "it is LoRA of the summed rank",
        "prompt_tuning": "it learns much less (3.698 against 2.879)",
    }
    if situation.several_conditions:
        why["adalora"] = "it does not read the condition: one adapter for all of them"
        why["hyperlora"] = next(
            e.test(situation, choose_rank(situation)).why for e in EDGES if e.name == "conditions"
        )
    if serves_lora_alone(situation):
        for name in ("dora", "mora"):
            why[name] = f"{serve} does not read it; an export is approximate"
        why["full"] = f"{serve} would need a whole model for each task"
    chosen = edge.method
    return [
        Reason(name, False, why[name], evidence)
        for name, evidence in ALTERNATIVES.items()
        if name != chosen
    ]


def _doubts(situation: Situation, edge: Edge, rank: Rank) -> list[Reason]:
    """What the evidence does not separate; the simplest is taken then."""
    doubts = []
    if edge.name in ("otherwise", "extreme memory", "one adapter each"):
        why = (
            "with tuned rates most variants end within 1 to 2 % of each other, ours too from r=8 "
            "on; it cannot tell which is best here, and takes LoRA, the simplest"
        )
        doubts.append(
            Reason(
                "LoRA, DoRA or AdaLoRA",
                "cannot tell",
                why,
                ("paper-variants", "claims-dora-8", "claims-adalora"),
            )
        )
    if situation.several_conditions:
        why = "whether one network learns more than one LoRA for each condition is not shown; " + (
            "the network takes the rows as they are, and new conditions share what it learned"
            if edge.method == "hyperlora"
            else "separate adapters are the simplest"
        )
        doubts.append(
            Reason("HyperLoRA or one LoRA each", "cannot tell", why, ("paper-hyperlora",))
        )
    if edge.name == "budget unknown":
        why = "AdaLoRA against LoRA was not shown on our small base; the paper shows it for classes"
        doubts.append(
            Reason("AdaLoRA or LoRA", "cannot tell", why, ("claims-adalora", "paper-adalora"))
        )
    if not rank.reached and edge.method != "full":
        why = "no rank reaches the label tokens; full fine-tuning may learn more"
        doubts.append(Reason("rank", "cannot tell", why, ("rule-label-tokens",)))
    why = "a search over three rates around it costs little: --try 10min"
    doubts.append(Reason("learning_rate", "within a factor of 3", why, ("results-rates",)))
    return doubts


def _serving(situation: Situation, edge: Edge) -> list[Reason]:
    """What has to be done before the adapter is served."""
    if situation.serve == "lorica":
        if edge.method == "full":
            why = "the whole model is trained: one server for each task"
            return [Reason("serve", "lorica", why, ("results-full",))]
        command = "lorica serve BASE --adapter NAME=RUN"
        return [Reason("serve", "lorica", f"as it is: {command}", ("rule-serving", "rule-engines"))]
    reads = f"{situation.serve} reads plain LoRA adapters"
    if situation.rows.kind == "label":
        why = f"{reads}, and no classifier's head: lorica merge RUN, or serve it by lorica predict"
        return [Reason("serve", situation.serve, why, ("rule-serving", "rule-engines"))]
    if edge.method == "hyperlora":
        why = f"{reads}: one for each condition, lorica export RUN --condition NAME"
    elif edge.method == "lora" and situation.serve == "vllm":
        why = f"{reads}: the run folder loads as it is"
    else:
        why = f"{reads}: lorica export RUN"
    return [Reason("serve", situation.serve, why, ("rule-serving", "rule-engines"))]
