"""What has to be done before an adapter is served, by what the engines read."""

from lorica.plan.choose.flowchart import Edge
from lorica.plan.choose.reason import Reason
from lorica.plan.choose.situation import Situation


def about_serving(situation: Situation, edge: Edge) -> list[Reason]:
    """What has to be done before the adapter is served."""
    if situation.serve == "lorica":
        if edge.method == "full":
            why = "the whole model is trained: lorica merge RUN --output MODEL, and serve that"
            return [Reason("serve", "lorica", why, ("results-full",))]
        if situation.rows.kind == "label":
            why = "a classifier is not served: lorica predict RUN --data ROWS"
            return [Reason("serve", "lorica", why, ("rule-serving", "rule-engines"))]
        command = "lorica serve BASE --adapter NAME=RUN"
        return [Reason("serve", "lorica", f"as it is: {command}", ("rule-serving", "rule-engines"))]
    reads = f"{situation.engine} reads plain LoRA adapters"
    if situation.rows.kind == "label":
        why = f"{reads}, and no classifier's head: lorica merge RUN --output MODEL"
        return [Reason("serve", situation.serve, why, ("rule-serving", "rule-engines"))]
    if edge.method == "hyperlora":
        why = f"{reads}: one for each condition, lorica export RUN --condition NAME"
    elif edge.method == "lora" and situation.serve == "vllm":
        why = f"{reads}: the run folder loads as it is"
    else:
        why = f"{reads}: lorica export RUN"
    return [Reason("serve", situation.serve, why, ("rule-serving", "rule-engines"))]
