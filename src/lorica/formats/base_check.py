"""Whether a model is the base that an adapter was trained on."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lorica.base.fingerprint import Fingerprint, differences, fingerprint, grade
from lorica.errors import BaseError

OTHER_TEMPLATE = "the chat template is not that of training"
"""A notice."""


def check_base(
    trained_on: Fingerprint,
    model: nn.Module,
    tokenizer: Any,
    *,
    whole: Sequence[str] = (),
    allow_base: str | None = None,
    here: Fingerprint | None = None,
) -> list[str]:
    """Compare `model` with the base of an adapter.

    whole: modules_to_save of the adapter, which replace layers of the base.
    here: the fingerprint of `model`, with its tokenizer; None: it is computed.
    allow_base: the grade that is accepted beyond "same" and "same but quantised":
        "same shapes", or "different".

    Returns: notices. Raises: BaseError unless the grade is accepted.
    """
    then, now = trained_on, here or fingerprint(model, tokenizer=tokenizer, whole=whole)
    verdict, changes = grade(then, now), differences(then, now)
    kinds = {k: what for k, what in changes.items() if k not in ("training", "chat_template")}
    notices = []
    if verdict != "same":
        origin = f"trained on {then.path}, {then.quantisation or 'float'}"
        words = "".join(f"; other {kind}: {what}" for kind, what in kinds.items())
        notices.append(f"base: {verdict} ({origin}){words}")
    if verdict not in _accepted(allow_base):
        raise BaseError(
            f"this is not the base that the adapter was trained on: {verdict}.",
            trained_on=f"{then.path} ({then.architecture}, {then.parameters:,} parameters)",
            here=f"{now.path} ({now.architecture}, {now.parameters:,} parameters)",
            **({f"other_{k}": what for k, what in kinds.items()} if verdict != "different" else {}),
            fix=f'load that base, or pass allow_base="{verdict}" if this base is intended',
        )
    if then.weights is None:
        notices.append(
            "an earlier lorica saved this adapter: of its base only samples of the weights are "
            "compared, and not the config; save it again to have all compared"
        )
        if tokenizer is not None and then.tokenizer not in (None, now.tokenizer):
            notices.append("the tokenizer is not that of training")
    if "training" in changes:
        notices.append(f"the base's config differs in what acts in training: {changes['training']}")
    if "chat_template" in changes:
        notices.append(OTHER_TEMPLATE)
    return notices


def _accepted(allow_base: str | None) -> set[str | None]:
    """The grades of a base that are accepted."""
    more = {"same shapes"} if allow_base == "different" else set()
    return {"same", "same but quantised", allow_base} | more
