"""Write the model card of an adapter: README.md, with the front matter that the hub reads.

Its contents come from the manifest and from the run. If a person removes the last line of a card,
the card is not overwritten when the adapter is saved again.
"""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lorica import plain_files
from lorica.base.bundled import NAME
from lorica.base.fingerprint import Fingerprint
from lorica.core.bank import Spec
from lorica.formats.adapter_folder import CARD

MARK = "<!-- lorica writes this card at each save; remove this line to keep your own text -->"
LARGEST = 1_000_000


def card(
    spec: Spec,
    base: Fingerprint,
    labels: list[str] | None,
    *,
    peft: bool,
    numbers: int,
    trained: Mapping[str, Any],
) -> str:
    """The model card as Markdown.

    peft: whether PEFT can load the folder. numbers: how many the adapter has. trained: rows of
        the table about training (data, settings, results); empty if they are not known.
    """
    name = Path(base.path).name or "its base"
    # Not a local folder: the hub knows models by owner/name.
    on_hub = (
        base.path.count("/") == 1 and not Path(base.path).exists() and base.path[0] not in "./~"
    )
    front = {
        **({"base_model": base.path, "base_model_relation": "adapter"} if on_hub else {}),
        "library_name": "peft" if peft else "lorica",
        "pipeline_tag": "text-classification" if labels else "text-generation",
        "tags": ["lorica", spec.method.name],
    }
    method = {k: v for k, v in asdict(spec.method).items() if v is not None}
    rows: dict[str, Any] = {
        "base": f"{name} ({base.architecture}, {base.parameters:,} parameters, "
        f"{base.quantisation or 'not quantised'})",
        "method": f"{spec.method.name}: " + ", ".join(f"{k} {v}" for k, v in method.items()),
        "numbers": f"{numbers:,}",
        **({"classes": ", ".join(labels)} if labels else {}),
        **trained,
        "seed": spec.seed,
        "written by": f"lorica {version('lorica')}",
    }
    table = [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n",
        f"# A {spec.method.name} adapter for {_cell(name)}\n",
        "\n".join(["| | |", "|---|---|", *table]) + "\n",
        "## How to load it\n",
        _code(base.path if on_hub or base.path == NAME else "path/to/base", labels, peft),
        MARK,
    ]
    return "\n".join(parts) + "\n"


def edited_card(folder: Path) -> str | None:
    """The card of an adapter folder, if a person has edited it and removed MARK; else None."""
    path = folder / CARD
    if not plain_files.is_file(path):
        return None
    text = plain_files.read_bytes(path, LARGEST).decode("utf-8", "replace")
    return None if MARK in text else text


def _code(base: str, labels: list[str] | None, peft: bool) -> str:
    kind = "AutoModelForSequenceClassification" if labels else "AutoModelForCausalLM"
    more = f", num_labels={len(labels)}" if labels else ""
    use = "predict PATH --data rows.jsonl" if labels else 'generate PATH --prompt "..."'
    lines = [
        "```python",
        f"from transformers import {kind}",
        "",
        f'model = {kind}.from_pretrained("{base}"{more})',
        "",
        "import lorica",
        'lorica.load(model, "PATH")',
    ]
    if peft:
        lines += [
            "",
            "# or, without lorica",
            "from peft import PeftModel",
            'model = PeftModel.from_pretrained(model, "PATH")',
        ]
    lines += ["```", "", f"On the command line: `lorica {use}`, with PATH this folder.", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """Format a value on one line, with Markdown's characters escaped."""
    text = " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 500 else f"{text[:497]}..."
