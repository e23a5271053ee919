"""Which layout of PEFT an adapter has, by its method or by the peft_type of a config."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lorica.core.bank import attached, spec_of
from lorica.errors import FileError
from lorica.formats.peft.adalora import AdaloraLayout
from lorica.formats.peft.ia3 import Ia3Layout
from lorica.formats.peft.layout import Layout
from lorica.formats.peft.lora import LoraLayout
from lorica.formats.peft.prefix_tuning import PrefixTuningLayout
from lorica.formats.peft.prompt_tuning import PromptTuningLayout, PTuningLayout
from lorica.formats.peft.vera import VeraLayout

LAYOUTS: tuple[Layout, ...] = (
    LoraLayout(),
    AdaloraLayout(),
    Ia3Layout(),
    VeraLayout(),
    PrefixTuningLayout(),
    PromptTuningLayout(),
    PTuningLayout(),
)


def layout_for(model: nn.Module, name: str) -> Layout | None:
    """The layout that has a place for all that adapter `name` is; None if PEFT has none."""
    spec, adapters = spec_of(model, name), attached(model, name).adapters
    return next((layout for layout in LAYOUTS if layout.holds(spec, adapters)), None)


def peft_notices(model: nn.Module, name: str) -> list[str]:
    """Named lines on why PEFT would not read adapter `name` as it is."""
    layout = layout_for(model, name)
    problems = [] if layout is None else layout.peft_problems(model, name)
    return [f"PEFT cannot read this adapter as it is: {problem}" for problem in problems]


def layout_of(config: Mapping[str, Any], source: str) -> Layout:
    """The layout of a folder. Raises: FileError if its peft_type is not read."""
    kind = config.get("peft_type")
    for layout in LAYOUTS:
        if layout.kind == kind:
            return layout
    raise FileError(
        f"{source}: this PEFT adapter uses what lorica does not read.",
        settings=f"peft_type {kind!r}",
        known=", ".join(layout.kind for layout in LAYOUTS),
        fix="merge it with PEFT, or train it again here",
    )
