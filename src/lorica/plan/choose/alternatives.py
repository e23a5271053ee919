"""What was not chosen and why, and what the evidence does not separate."""

from lorica.plan.choose.flowchart import EDGES, Edge
from lorica.plan.choose.questions import LOW, fits, serves_lora_alone
from lorica.plan.choose.rank import Rank, choose_rank
from lorica.plan.choose.reason import Reason
from lorica.plan.choose.situation import Situation

SMALL_BASE = 50_000_000
"""Parameters; our studies have bases of 0.26 and 5 million."""
ALTERNATIVES = {
    "lora": ("results-lora",),
    "dora": ("results-dora", "results-lora", "claims-dora-8"),
    "adalora": ("results-adalora", "claims-adalora"),
    "hyperlora": ("results-hyperlora",),
    "mora": ("results-mora",),
    "full": ("results-full",),
    "double_lora": ("claims-double",),
    "prompt_tuning": ("results-prompt", "results-lora"),
}
"""Methods that a reader may expect, with what was measured of each."""


def ruled_out(situation: Situation, edge: Edge, r: int | None) -> list[Reason]:
    """Why none of the methods that were not chosen is taken."""
    engine = situation.engine
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
    if r is not None and r <= LOW:
        why["dora"] = "0.6 % lower loss at r=4; a step takes 16 % longer, and vLLM does not read it"
    if serves_lora_alone(situation):
        for name in ("dora", "mora"):
            why[name] = f"{engine} does not read it; an export is approximate"
        why["full"] = f"{engine} would need a whole model for each task"
    cited = dict(ALTERNATIVES)
    if r is not None and r <= LOW:
        cited["dora"] = ("results-dora", "claims-dora-low")
    chosen = edge.method
    return [
        Reason(name, False, why[name], evidence)
        for name, evidence in cited.items()
        if name != chosen
    ]


def doubts_of(situation: Situation, edge: Edge, rank: Rank, r: int | None) -> list[Reason]:
    """What the evidence does not separate; the simplest is taken then."""
    doubts = []
    if edge.name in ("otherwise", "extreme memory", "one adapter each"):
        ours = "0.6 % apart at r=4" if r is not None and r <= LOW else "no difference shown at r=8"
        why = (
            "with tuned rates most variants end within 1 to 2 % of each other (ours: "
            f"{ours}); it cannot tell which is best here, and takes LoRA, the simplest"
        )
        cited = "claims-dora-low" if r is not None and r <= LOW else "claims-dora-8"
        doubts.append(
            Reason(
                "LoRA, DoRA or AdaLoRA",
                "cannot tell",
                why,
                ("paper-variants", cited, "claims-adalora"),
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
    small = situation.base.parameters <= SMALL_BASE
    if edge.method != "full" and small and fits(situation, "full", rank.r):
        why = (
            "full fine-tuning fits, and on bases this small it ended with a lower loss than LoRA "
            "in our studies, and forgot more: compare both on your rows (lorica compare)"
        )
        doubts.append(
            Reason(f"{edge.method} or full", "cannot tell", why, ("results-full", "studies-full"))
        )
    if not rank.reached and edge.method != "full":
        why = "no rank reaches the label tokens; full fine-tuning may learn more"
        doubts.append(Reason("rank", "cannot tell", why, ("rule-label-tokens",)))
    why = "a search over three rates around it costs little: --try 10min"
    doubts.append(Reason("learning_rate", "within a factor of 3", why, ("results-rates",)))
    return doubts
