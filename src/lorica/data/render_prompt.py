"""The text that a plain answer follows: Alpaca's, or a template that the user gives.

Alpaca's is the published one (tatsu-lab/stanford_alpaca, train.py), so that adapters go with
what other tools put in front of them: two sentences, one for rows with an input. The answer
follows "### Response:" at once. Many tools add a line break there; `data.prompt_template`
takes such a text.
"""

from collections.abc import Sequence
from typing import Any

from lorica.data.row_format import BadRow, text_in
from lorica.data.template_worker import Overrun, Refused, render_all
from lorica.errors import DataError

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n"
)
# The same as `alpaca_prompt`, as a template: what an adapter's manifest records.
ALPACA_TEMPLATE = (
    "{% if system %}{{ system }}\n\n{% elif input %}"
    + WITH_INPUT
    + "{% else %}"
    + WITHOUT_INPUT
    + "{% endif %}{% for asked, answered in history or [] %}### Instruction:\n{{ asked }}\n\n"
    "### Response:{{ answered }}\n\n{% endfor %}### Instruction:\n{{ instruction }}\n\n"
    "{% if input %}### Input:\n{{ input }}\n\n{% endif %}### Response:"
)


def alpaca_prompt(
    instruction: str, given: str = "", system: str = "", history: Sequence[Sequence[str]] = ()
) -> str:
    """The text that an Alpaca row's answer follows.

    given: the row's input. system: stands in place of the opening sentence. history: pairs of
    instruction and answer that came before.
    """
    opening = f"{system}\n\n" if system else WITH_INPUT if given else WITHOUT_INPUT
    before = "".join(f"### Instruction:\n{q}\n\n### Response:{a}\n\n" for q, a in history)
    middle = f"### Input:\n{given}\n\n" if given else ""
    return f"{opening}{before}### Instruction:\n{instruction}\n\n{middle}### Response:"


def default_prompt(kind: str, fields: dict[str, Any]) -> str:
    """The prompt of an alpaca or prompt row without data.prompt_template."""
    if kind == "prompt":
        return fields["prompt"]
    return alpaca_prompt(
        fields["instruction"], fields["input"], fields["system"], fields["history"]
    )


def alpaca_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Instruction, input, system and history of an Alpaca row. Raises: BadRow."""
    found: dict[str, Any] = {"instruction": text_in(fields, "instruction")}
    for name in ("input", "system"):
        found[name] = "" if fields.get(name) is None else text_in(fields, name)
    history = fields.get("history") or []
    if not isinstance(history, list) or not all(_is_pair(item) for item in history):
        raise BadRow("history is no list of [instruction, answer] pairs")
    return found | {"history": [list(pair) for pair in history]}


def _is_pair(item: Any) -> bool:
    pair = isinstance(item, list | tuple) and len(item) == 2
    return pair and all(isinstance(text, str) for text in item)


def render_prompts(template: str, rows: Sequence[dict[str, Any]]) -> list[str | BadRow]:
    """The template's text of each row's fields; a BadRow where it refuses, or drops one.

    Raises: DataError if it is no template, or does not end.
    """
    fix = "mend data.prompt_template"
    try:
        answers = render_all(template, {}, [{"given": fields} for fields in rows])
    except Overrun as error:
        raise DataError(
            "data.prompt_template does not come to an end, and was stopped.",
            reason=str(error),
            fix=fix,
        ) from None
    except Refused as error:
        raise DataError(
            "data.prompt_template cannot be read.",
            reason=str(error),
            line=error.line or "unknown",
            fix=fix,
        ) from None
    return [_checked(answer, fields) for answer, fields in zip(answers, rows, strict=True)]


def _checked(answer: dict[str, Any], fields: dict[str, Any]) -> str | BadRow:
    if "refused" in answer:
        return BadRow(f"data.prompt_template refuses it ({answer['refused']})")
    text = answer["text"]
    flat = "".join(text.split())
    said = [(name, value) for name, value in fields.items() if isinstance(value, str)]
    said += [("history", turn) for pair in fields.get("history", ()) for turn in pair]
    for name, value in said:
        if "".join(value.split()) not in flat:
            return BadRow(
                f"data.prompt_template does not write its {name}", f"put {{{{ {name} }}}} into it"
            )
    return text
