"""The last block of a decoder works out what will be read of it, and no more.

A training step reads the last block's output only where the next token is a label. Keys and values
are needed at every position. The query, what attention's output goes through and the feed-forward
layer act on each position alone: they are given the positions that are read, and what they give is
laid into zeros. Sums with the residual stream are right there, and elsewhere nothing reads them.

The positions travel as a keyword of the decoder's call, down to the attention of the block: a
recomputation in the backward pass meets them again, and a call without them is a plain one. What
acts on each position alone is guessed from shape and place; whether the guess holds is tried.
Where parts of the line have adapters of their own, so has what is left of them.

    B rows   T tokens of each   N positions that are read   C features
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lorica.base.packing import packed
from lorica.core.attach import use
from lorica.core.line import Line, shorter
from lorica.core.modes import in_mode
from lorica.core.port import Switch, switch_of
from lorica.core.site import PORT, sites_of
from lorica.methods.bottleneck import INPUT

ASKED = "lorica_asked"
"""Keyword of the decoder's call: (N,) the flat positions (into B * T) that will be read, each
once, in their order."""
QUERIES = ("q_proj", "query", "wq")  # names of layers that make the query, and nothing else


class LastBlock:
    """Hooks that let `parts` of a block see the positions in ASKED alone; adapters come first.

    attention: that of the block. It is called before every one of `parts`, in a recomputation too,
        and told what the block is: not the block itself, whose own hooks a recomputation may leave
        out. A part that is called before it would act on the positions of the batch before.
    switch: of the model.
    """

    def __init__(self, attention: nn.Module, parts: list[nn.Module], switch: Switch):
        self.switch = switch
        self.line: Line = ()
        self.asked: Tensor | None = None
        self.shape = torch.Size()  # (B, T) of the call
        self.inside: set[nn.Module] = set()  # parts that have been given a choice of positions
        self.handles: list[Any] = [
            attention.register_forward_pre_hook(self._open, with_kwargs=True)
        ]
        for part in parts:
            # Around the hooks of adapters: before them going in, and after them coming out.
            self.handles.append(part.register_forward_pre_hook(self._choose, prepend=True))
            self.handles.append(part.register_forward_hook(self._lay))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _open(self, attention: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
        """A call of the block begins, with positions or without."""
        self.inside.clear()
        self.asked, self.line = options.get(ASKED), self.switch.segments
        self.shape = (args[0] if args else options["hidden_states"]).shape[:2]
        return args, {key: value for key, value in options.items() if key != ASKED}

    def _choose(self, part: nn.Module, args: tuple) -> tuple | None:
        if self.asked is None or args[0].shape[:2] != self.shape:
            return None  # the latter: an adapter asks for something of its own
        self.inside.add(part)
        if self.line:
            self.switch.line = shorter(self.line, self.asked)
        return (args[0].flatten(0, 1).index_select(0, self.asked).unsqueeze(0), *args[1:])

    def _lay(self, part: nn.Module, args: tuple, y: Any) -> Any:
        if part not in self.inside:
            return None
        self.inside.remove(part)
        if self.line:
            self.switch.line = self.line
        if isinstance(y, tuple):  # experts: with what their router said
            return (self._laid(y[0]), *y[1:])
        return self._laid(y)

    def _laid(self, y: Tensor) -> Tensor:
        assert self.asked is not None
        zeros = y.new_zeros(self.shape.numel(), y.shape[-1])
        return zeros.index_copy(0, self.asked, y.flatten(0, -2)).unflatten(0, self.shape)


def last_of(model: nn.Module, decoder: nn.Module, *, by_row: bool) -> LastBlock | None:
    """Hooks on the last block of `decoder`, the model's own; None if it cannot do with less.

    The adapters are on the model already. by_row: rows will lie end to end.
    """
    found = _parts(decoder)
    if found is None:
        return None
    attention, parts = found
    last, rows = None, packed(model) if by_row else nullcontext()
    try:
        with use(model), in_mode(model, training=False), rows:
            last = LastBlock(attention, _after(decoder, attention, parts, by_row), switch_of(model))
            same = _same(decoder, by_row)
    except Exception:  # an unknown architecture may refuse in any way at all
        same = False
    if same:
        return last
    if last is not None:
        last.remove()
    return None


def _after(
    decoder: nn.Module, attention: nn.Module, parts: list[nn.Module], by_row: bool
) -> list[nn.Module]:
    """Those of `parts` that a forward pass calls once, and inside or after `attention`."""
    calls: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, *_: calls.append(module))
        for module in (attention, *parts)
    ]
    try:
        with torch.no_grad():
            _hidden(decoder, _inputs(decoder, by_row), by_row)
    finally:
        for handle in handles:
            handle.remove()
    if calls.count(attention) != 1:
        return []
    begun = calls.index(attention)
    return [part for part in parts if calls.count(part) == 1 and calls.index(part) > begun]


def _parts(decoder: nn.Module) -> tuple[nn.Module, list[nn.Module]] | None:
    """The last attention layer, and what may act on each position alone in it and beside it."""
    layers = sites_of(decoder, ("attention",))
    if not layers or "." not in layers[-1].name:
        return None
    attention = layers[-1].module
    block = decoder.get_submodule(layers[-1].name.rpartition(".")[0])
    linear = {site.name.rpartition(".")[2]: site.module for site in sites_of(attention)}
    parts = [module for leaf, module in linear.items() if leaf in QUERIES]
    parts += [module for leaf, module in linear.items() if not INPUT.match(leaf)][-1:]
    for name, child in block.named_children():
        if child is not attention and name != PORT and _mixes_features(child):
            parts.append(child)
    return attention, parts


def _mixes_features(module: nn.Module) -> bool:
    """It is no norm, dropout or activation."""
    return bool(sites_of(module)) or any(p.ndim > 1 for p in module.parameters())


def _inputs(decoder: Any, by_row: bool) -> Tensor:
    """Embeddings of 12 tokens, in one packed row or in two rows."""
    table = decoder.get_input_embeddings()
    ids = (torch.arange(12, device=table.weight.device) * 7 + 3).remainder(table.weight.shape[0])
    return table(ids.view((1, 12) if by_row else (2, 6))).detach()


def _hidden(decoder: Any, inputs: Tensor, by_row: bool, **more: Any) -> Tensor:
    """Hidden states (12, C)."""
    options: dict[str, Any] = {"use_cache": False, **more}
    if by_row:
        places = torch.cat([torch.arange(5), torch.arange(7)]).to(inputs.device).unsqueeze(0)
        options |= {"position_ids": places, "row_lengths": [5, 7]}
    return decoder(inputs_embeds=inputs, **options).last_hidden_state.flatten(0, 1)


@torch.enable_grad()
def _same(decoder: nn.Module, by_row: bool) -> bool:
    """With and without ASKED: hidden states that are read, and their gradients at the input.

    The positions are asked for first, so that a part that still has those of a call before shows.
    """
    inputs = _inputs(decoder, by_row).requires_grad_()
    asked = torch.tensor([1, 4, 7, 10], device=inputs.device)
    found = []
    for more in ({ASKED: asked}, {}, {ASKED: asked}):
        read = _hidden(decoder, inputs, by_row, **more)[asked].double()
        weights = torch.arange(read.numel(), device=read.device).cos().view_as(read)
        found.append([read, *torch.autograd.grad((read * weights).sum(), inputs)])
    close = 1e-4 if inputs.dtype.itemsize >= 4 else 5e-2
    pairs = [*zip(found[0], found[1], strict=True), *zip(found[1], found[2], strict=True)]
    return all((a - b).abs().max() <= close * b.abs().max() for a, b in pairs)
