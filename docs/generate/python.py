"""The page on the Python interface: every name in `lorica.__all__`, for mkdocstrings to fill."""

import inspect

import lorica
from docs.generate.markdown import page as markdown_page
from lorica.core.adapter import Method

GROUPS = {
    "Adapters in a model": [
        "method",
        "Lora",
        "Dora",
        "Full",
        "adapt",
        "activate",
        "use",
        "mixed",
        "trainable_parameters",
        "detach",
        "merge",
    ],
    "Adapters on disk": ["save", "load", "export_lora", "combine"],
    "Other runtimes": ["hand_over", "verify"],
    "Training": ["train", "train_each", "AdapterCallback", "ReferenceModel", "Driver"],
    "Evaluation": ["evaluate", "predict"],
    "Errors": ["LoricaError"],
}
"""Heading -> the names below it, in the order of the page."""

OPENING = """\
Everything public is a name of the package `lorica`. `import lorica` loads nothing heavy: each name
is loaded when it is first used. The model that you pass in is the model that you get back.

```python
import lorica
from transformers import AutoModelForCausalLM, LlamaConfig

model = AutoModelForCausalLM.from_config(
    LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
)
lorica.adapt(model, lorica.Lora(r=8, alpha=16), target_modules="all-linear")
print(lorica.trainable_parameters(model))
lorica.save(model, "adapter")
lorica.detach(model)
for notice in lorica.load(model, "adapter"):
    print(notice)
```"""


def page() -> str:
    """Raises: ValueError if a public name is on no list above, or on two."""
    listed = sorted(name for names in GROUPS.values() for name in names)
    if listed != sorted(lorica.__all__):
        raise ValueError(f"docs/generate/python.py: list these names once: {lorica.__all__}")
    parts = [OPENING]
    for heading, names in GROUPS.items():
        parts.append(f"## {heading}")
        shown: set[type] = set()
        for name in names:
            value = getattr(lorica, name)
            parts.append(_entry(f"lorica.{name}", value))
            returned = _returned(value)
            if returned is not None and returned not in shown:
                shown.add(returned)
                parts.append(_entry(returned.__name__, returned, members=False))
    return markdown_page("Python", *parts)


def _entry(heading: str, value: type, *, members: bool = True) -> str:
    lines = [
        f"::: {value.__module__}.{value.__qualname__}",
        "    options:",
        f"      heading: {heading}",
        f"      toc_label: {heading.removeprefix('lorica.')}",
    ]
    if inspect.isclass(value) and issubclass(value, Method) and value is not Method:
        page = f"[`{value.name}`](../methods/{value.name}.md)"
        lines += ["", f"The page of {page} says what its settings mean."]
    elif inspect.isclass(value) and members:
        lines.append(f"      members: {_public_members(value)}")
    return "\n".join(lines)


def _public_members(kind: type) -> list[str]:
    """Methods and properties with a docstring that the class itself defines."""
    return [
        name
        for name, value in vars(kind).items()
        if not name.startswith("_") and value.__doc__
        if inspect.isfunction(value) or isinstance(value, property)
    ]


def _returned(value: object) -> type | None:
    """The class of this package that a function returns, if it is not public itself."""
    if not inspect.isfunction(value):
        return None
    kind = inspect.signature(value).return_annotation
    ours = inspect.isclass(kind) and kind.__module__.startswith("lorica.")
    return kind if ours and kind.__name__ not in lorica.__all__ else None
