"""Try an architecture on a few blocks of each kind, which is enough to see how it computes.

What may share a forward pass, what the last block reads, whether a base is causal: such questions
are answered by trials, some fifteen forward passes before the first step. Through all blocks of a
base of billions of parameters, on a CPU or with weights that wait on disk, they would take longer
than many a step. A trial that fails on a few blocks is repeated on all of them.

Blocks of one kind have the same classes, shapes and settings, and the same entries in the lists of
the config that have one for each block.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lorica.core.site import ADAPTERS, blocks_of, config_of, decoder_of

T = TypeVar("T")
FIRST, LAST = 1, 3
"""How many blocks of a kind are kept, from the first on and up to the last."""
PLACES = {"layer_idx", "layer_id", "layer_index", "layer_number"}
"""Attributes of a block that say where it is, not what it does."""
SIMPLE = (bool, int, float, str, Enum, torch.dtype, type(None))


def tried(model: nn.Module, trial: Callable[[], T], passes: Callable[[T], bool]) -> T:
    """What `trial` returns, on a few blocks of `model` if it passes on these, else on all."""
    with few_blocks(model) as are_few:
        if are_few:
            try:
                result = trial()
            except Exception:  # decided by all blocks
                pass
            else:
                if passes(result):
                    return result
    return trial()


@contextmanager
def few_blocks(model: nn.Module) -> Iterator[bool]:
    """Inside the block, most blocks of the decoder hand on the hidden states as they are.

    Yields: whether any block is skipped. Then a pass raises if the blocks of its kind do not return
    a tensor of the shape that they are given.
    """
    decoder = decoder_of(model) or model
    kinds: dict[Any, list[str]] = defaultdict(list)
    blocks = blocks_of(model)
    for i, (name, block) in enumerate(blocks.items()):
        kinds[(_kind(block), *_settings_by_place(model, i, len(blocks)))].append(name)
    handles, skipped = [], []
    for names in kinds.values():
        if len(names) <= FIRST + LAST:
            continue
        seen = _Seen()
        handles.append(blocks[names[0]].register_forward_hook(seen.record, with_kwargs=True))
        skipped += [(name, _Skipped(blocks[name], seen)) for name in names[FIRST:-LAST]]
    try:
        for name, stand_in in skipped:
            _put(decoder, name, stand_in)
        yield bool(skipped)
    finally:
        for name, _ in skipped:
            _put(decoder, name, blocks[name])
        for handle in handles:
            handle.remove()


class _Seen:
    """What the first block of a kind does with the shape of its input."""

    keeps_shape = False

    def record(self, block: nn.Module, args: tuple, options: dict, output: Any) -> None:
        hidden = _hidden(args, options)
        self.keeps_shape = isinstance(output, Tensor) and output.shape == hidden.shape


class _Skipped(nn.Module):
    """In the place of a block; it has the block's attributes, and none of its modules."""

    def __init__(self, block: nn.Module, seen: _Seen):
        super().__init__()
        self.__dict__.update(block=block, seen=seen)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **options: Any) -> Tensor:
        if not self.seen.keeps_shape:
            raise RuntimeError(f"blocks of the class {type(self.block).__name__} are not skipped")
        return _hidden(args, options)


def _hidden(args: tuple, options: dict) -> Tensor:
    return args[0] if args else options["hidden_states"]


def _put(decoder: nn.Module, name: str, block: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    decoder.get_submodule(parent)._modules[key] = block


def _kind(block: nn.Module) -> tuple:
    """Equal for two blocks that differ in the values of their weights alone, adapters aside."""
    return tuple(
        (name, type(module), _settings(module), _shapes(module))
        for name, module in block.named_modules()
        if ADAPTERS not in name.split(".")
    )


def _settings(module: nn.Module) -> tuple:
    own = vars(module).items()
    return tuple((k, repr(v)) for k, v in own if _is_simple(v) and k not in PLACES)


def _settings_by_place(model: nn.Module, i: int, count: int) -> Iterator[str]:
    """What the config says of block `i` in a list with an entry for each of `count` blocks: code
    may look it up there, and keep nothing of it in the block."""
    config: Any = config_of(model)
    text = getattr(config, "get_text_config", lambda: None)()
    for own in (config, text):
        for key, value in getattr(own, "__dict__", {}).items():
            if isinstance(value, list | tuple) and len(value) == count:
                yield f"{key}: {value[i]!r}"


def _is_simple(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_simple, value))
    return isinstance(value, SIMPLE)


def _shapes(module: nn.Module) -> tuple:
    own = {**module._parameters, **module._buffers}.items()
    return tuple((key, t.shape, t.dtype) for key, t in own if t is not None)
