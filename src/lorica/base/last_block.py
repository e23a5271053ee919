"""Compute the last decoder block only at label positions.

A training step reads the output of the last block only where the next token is a label. Keys and
values are needed at every position. The query, the output projection of attention and the
feed-forward layer act on each position alone: their inputs are cut down to the label positions, and
their outputs are scattered into zeros. Sums with the residual stream are right at the label
positions, and nothing reads the others.

The positions travel as a keyword of the decoder's call, down to the attention of the block: a
recomputation in the backward pass gets the same ones, and a call without them is a plain one.
Which layers act on each position alone is guessed from shape and order of calls; a trial compares
the result with that of the whole block. Where segments of a packed batch have adapters of their
own, the layers get the route of the label positions.

    B rows   T tokens of each   N label positions   C features
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorica.base.few_blocks import tried
from lorica.base.packing import packed
from lorica.core.attach import use
from lorica.core.bank import Bank, bank_of
from lorica.core.modes import in_mode
from lorica.core.route import BASE, Route
from lorica.core.site import ADAPTERS, sites_of

LABEL_POSITIONS = "lorica_label_positions"
"""Keyword of the decoder's call: the `LabelPositions` of the batch."""
QUERIES = ("q_proj", "query", "wq")  # names of layers that make the query, and nothing else


@dataclass(frozen=True)
class LabelPositions:
    """index: (N,) flat positions (into B * T) whose outputs are read, in ascending order.

    route: that of these positions.
    """

    index: Tensor
    route: Route


class LastBlock:
    """The layers of the last block that can be given the label positions alone.

    attention: that of the block. It is called before all `layers`, in a recomputation too, and
        receives the positions. The hooks of the block itself may be left out in a recomputation.
    layers: each acts on every position alone, and is called once, inside or after `attention`.
    """

    def __init__(self, attention: nn.Module, layers: list[nn.Module]):
        self.attention, self.layers = attention, layers
        self.is_hooked = False

    @contextmanager
    def hooked(self, bank: Bank) -> Iterator[None]:
        """Inside the block, calls of the decoder take LABEL_POSITIONS. For a whole training step:
        the backward pass may run the forward pass again.

        bank: of the model. All adapters are attached already: the hooks go around theirs.
        """
        call = _Call(bank)
        handles = [self.attention.register_forward_pre_hook(call.begin, with_kwargs=True)]
        for layer in self.layers:  # before the adapters going in, and after them coming out
            handles.append(layer.register_forward_pre_hook(call.gather, prepend=True))
            handles.append(layer.register_forward_hook(call.scatter))
        self.is_hooked = True
        try:
            yield
        finally:
            self.is_hooked = False
            for handle in handles:
                handle.remove()


class _Call:
    """The hooks, and what they know of the call of the block that goes on."""

    def __init__(self, bank: Bank):
        self.bank, self.route = bank, bank.route
        self.labels: LabelPositions | None = None
        self.shape = torch.Size()  # (B, T)
        self.gathered: set[nn.Module] = set()  # layers that are running on the label positions

    def begin(self, attention: nn.Module, args: tuple, options: dict) -> tuple[tuple, dict]:
        """The attention of the block is called, with label positions or without."""
        self.gathered.clear()
        self.labels, self.route = options.get(LABEL_POSITIONS), self.bank.route
        self.shape = (args[0] if args else options["hidden_states"]).shape[:2]
        return args, {key: value for key, value in options.items() if key != LABEL_POSITIONS}

    def gather(self, layer: nn.Module, args: tuple) -> tuple | None:
        """Cut the input of a layer down to the label positions."""
        if self.labels is None or args[0].shape[:2] != self.shape:
            return None  # the latter: an adapter calls the layer on something of its own
        self.gathered.add(layer)
        self.bank.route = self.labels.route
        return (args[0].flatten(0, 1).index_select(0, self.labels.index).unsqueeze(0), *args[1:])

    def scatter(self, layer: nn.Module, args: tuple, y: Any) -> Any:
        """Put the output of a layer at the label positions into zeros."""
        if layer not in self.gathered:
            return None
        self.gathered.remove(layer)
        self.bank.route = self.route
        if isinstance(y, tuple):  # experts, whose router gives its logits as well
            return (self._scattered(y[0]), *y[1:])
        return self._scattered(y)

    def _scattered(self, y: Tensor) -> Tensor:
        assert self.labels is not None
        zeros = y.new_zeros(self.shape.numel(), y.shape[-1])
        return zeros.index_copy(0, self.labels.index, y.flatten(0, -2)).unflatten(0, self.shape)


def last_block_of(model: nn.Module, decoder: nn.Module, *, by_row: bool) -> LastBlock | None:
    """The last block of `decoder`, the model's own; None if it must see every position.

    by_row: rows will be packed. The model is left as it was.
    """
    return tried(
        model, lambda: _last_block(model, decoder, by_row), lambda block: block is not None
    )


def _last_block(model: nn.Module, decoder: nn.Module, by_row: bool) -> LastBlock | None:
    rows = packed(model) if by_row else nullcontext()
    try:
        with use(model), in_mode(model, training=False), rows:
            block = _find(decoder, by_row)
            if block is not None and _agrees(block, decoder, bank_of(model), by_row):
                return block
    except Exception:  # an unknown architecture may refuse in any way at all
        return None
    return None


def _find(decoder: nn.Module, by_row: bool) -> LastBlock | None:
    """The last attention layer, and what may act on each position alone in it and beside it."""
    attentions = sites_of(decoder, ("attention",))
    if not attentions or "." not in attentions[-1].name:
        return None
    attention = attentions[-1].module
    block = decoder.get_submodule(attentions[-1].name.rpartition(".")[0])
    linear = {site.name.rpartition(".")[2]: site.module for site in sites_of(attention)}
    beside = [
        child
        for name, child in block.named_children()
        if child is not attention and name != ADAPTERS and _mixes_features(child)
    ]
    calls = _calls(decoder, [attention, *linear.values(), *beside], by_row)
    modules = [module for module, _ in calls]
    if modules.count(attention) != 1:
        return None
    hidden = next(inputs for module, inputs in calls if module is attention)
    inside = [(m, inputs) for m, inputs in calls if m in linear.values()]
    # The output projection is called last, and is the one that does not read the hidden states.
    projections = [m for m, inputs in inside[-1:] if inputs is not hidden]
    layers = [module for leaf, module in linear.items() if leaf in QUERIES]
    layers += [*projections, *beside]
    start = modules.index(attention)
    return LastBlock(
        attention, [m for m in layers if modules.count(m) == 1 and modules.index(m) > start]
    )


def _calls(
    decoder: nn.Module, modules: list[nn.Module], by_row: bool
) -> list[tuple[nn.Module, Any]]:
    """(module, the tensor that it reads) for each call of `modules` in a forward pass, in order."""
    calls: list[tuple[nn.Module, Any]] = []

    def record(module: nn.Module, args: tuple, options: dict) -> None:
        calls.append((module, args[0] if args else options.get("hidden_states")))

    handles = [m.register_forward_pre_hook(record, with_kwargs=True) for m in modules]
    try:
        with torch.no_grad():
            _hidden(decoder, _inputs(decoder, by_row), by_row)
    finally:
        for handle in handles:
            handle.remove()
    return calls


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
def _agrees(block: LastBlock, decoder: nn.Module, bank: Bank, by_row: bool) -> bool:
    """Whether hidden states at label positions, and their gradients at the input, stay the same.

    A call with positions comes first: it shows a layer that still has those of an earlier call.
    """
    inputs = _inputs(decoder, by_row).requires_grad_()
    labels = LabelPositions(torch.tensor([1, 4, 7, 10], device=inputs.device), BASE)
    results = []
    with block.hooked(bank):
        for more in ({LABEL_POSITIONS: labels}, {}, {LABEL_POSITIONS: labels}):
            read = _hidden(decoder, inputs, by_row, **more)[labels.index].double()
            weights = torch.arange(read.numel(), device=read.device).cos().view_as(read)
            results.append([read, *torch.autograd.grad((read * weights).sum(), inputs)])
    close = 1e-4 if inputs.dtype.itemsize >= 4 else 5e-2
    first, whole, last = results
    pairs = [*zip(first, whole, strict=True), *zip(whole, last, strict=True)]
    return all((a - b).abs().max() <= close * b.abs().max() for a, b in pairs)
