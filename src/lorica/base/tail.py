"""Split a language model into its decoder and its tail: the head, and what follows the decoder.

The tail is the model's own code, with whatever the architecture does to the logits. It runs on
given hidden states, while a stand-in replaces the decoder. A trial shows whether both parts
together give what the whole model gives.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lorica.base.few_blocks import tried
from lorica.core.attach import use
from lorica.core.modes import in_mode
from lorica.core.site import decoder_of


class DecoderStandIn(nn.Module):
    """Replaces the decoder, and returns given hidden states (1, N, C)."""

    def __init__(self, hidden: Tensor):
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> "DecoderOutput":
        return DecoderOutput(self.hidden)


class DecoderOutput:
    """Hidden states; every other output of a decoder (caches, attentions, routers) is None."""

    def __init__(self, hidden: Tensor):
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


class Tail:
    """The part of `model` after its decoder, which is its child `name`."""

    def __init__(self, model: nn.Module, name: str):
        self.model, self.name = model, name
        self.decoder: Any = model.get_submodule(name)
        self.vocabulary = int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr]

    def __call__(self, hidden: Tensor) -> Tensor:
        """(N, C) hidden states to (N, V) logits."""
        children, model = self.model._modules, self.model
        children[self.name] = DecoderStandIn(hidden.unsqueeze(0))
        try:
            ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            return model.forward(input_ids=ids, use_cache=False).logits.squeeze(0)
        finally:
            children[self.name] = self.decoder

    def trainable(self) -> list[Tensor]:
        """The tensors outside of the decoder that are trained."""
        outside = [m for m in self.model.children() if m is not self.decoder]
        own = {id(p): p for m in outside for p in m.parameters() if p.requires_grad}
        return list(own.values())


def tail_of(model: nn.Module) -> Tail | None:
    """The model's tail; None if decoder and tail do not give what the whole model gives."""
    return tried(model, lambda: _tail(model), lambda tail: tail is not None)


@torch.no_grad()
def _tail(model: nn.Module) -> Tail | None:
    decoder = decoder_of(model)
    name = next((n for n, m in model.named_children() if m is decoder), None)
    if name is None:
        return None
    foreign: Any = model
    ids = torch.arange(3, 10, device=next(model.parameters()).device).unsqueeze(0)
    try:
        with use(model), in_mode(model, training=False):
            tail = Tail(model, name)
            ids = ids % tail.vocabulary
            whole = foreign(input_ids=ids, use_cache=False).logits[0]
            parts = tail(tail.decoder(input_ids=ids, use_cache=False).last_hidden_state[0])
    except Exception:  # an unknown architecture may refuse in any way at all
        return None
    close = 1e-4 if whole.dtype == torch.float32 else 2e-2
    same = parts.shape == whole.shape and (parts - whole).abs().max() <= close * whole.abs().max()
    return tail if same else None
