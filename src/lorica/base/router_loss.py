"""The load-balancing loss of a mixture of experts: whether the base's config adds it.

transformers adds `router_aux_loss_coef` times this loss to that of the label tokens where
`output_router_logits` is true. It is a product of means over a batch, and no sum over its tokens:
accumulated micro-batches would not have the loss of one large batch. So lorica does not add it.
"""

from torch import nn

from lorica.core.site import config_of


def router_loss_notices(model: nn.Module) -> list[str]:
    """A notice on the load-balancing loss that the config of `model` knows; []: it knows none."""
    config = config_of(model)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    weight = getattr(config, "router_aux_loss_coef", None)
    added = getattr(config, "output_router_logits", None)
    if weight is None or added is None:
        return []
    if not added:
        notice = (
            "the routers' load-balancing loss is not added, as the base's config says "
            "(output_router_logits: false)"
        )
        return [notice]
    notice = (
        "the base's config adds the routers' load-balancing loss (output_router_logits: true, "
        f"router_aux_loss_coef: {weight}), and lorica train does not: its loss is that of the "
        "label tokens alone; transformers' Trainer adds it to an adapted model"
    )
    return [notice]
