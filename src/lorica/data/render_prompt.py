"""The prompt of a row without messages: Alpaca's text, a user's template, or the text as it is.

Alpaca's text is the published one (tatsu-lab/stanford_alpaca, train.py), so that adapters work
with other tools that use it: one opening for rows with an input, another for rows without. The
answer follows "### Response:" directly. Many tools add a line break there; `data.prompt_template`
takes such a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorica.data.fields import BadRow, as_list, text_field
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
# `alpaca_prompt` as a template: an adapter's manifest records it.
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
    instruction: str,
    input_text: str = "",
    system: str = "",
    history: Sequence[Sequence[str]] = (),
) -> str:
    """The prompt of an Alpaca row.

    input_text: the row's input. system: replaces the opening sentence. history: earlier pairs of
    instruction and answer.
    """
    opening = f"{system}\n\n" if system else WITH_INPUT if input_text else WITHOUT_INPUT
    before = "".join(f"### Instruction:\n{q}\n\n### Response:{a}\n\n" for q, a in history)
    middle = f"### Input:\n{input_text}\n\n" if input_text else ""
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
    values: dict[str, Any] = {"instruction": text_field(fields, "instruction")}
    for name in ("input", "system"):
        values[name] = "" if fields.get(name) is None else text_field(fields, name)
    return values | {"history": [_turn(pair) for pair in _turns(fields.get("history") or [])]}


def _turns(history: Any) -> list[Any]:
    if as_list(history) is None:
        raise BadRow("history is not a list of [instruction, answer] pairs")
    return history


def _turn(pair: Any) -> list[str]:
    match pair:
        case [str(instruction), str(answer)]:
            return [instruction, answer]
        case _:
            raise BadRow("history is not a list of [instruction, answer] pairs")


@dataclass(frozen=True)
class RenderedPrompt:
    """The text of a prompt template, or why it cannot be used."""

    text: str = ""
    problem: BadRow | None = None

    def checked(self) -> str:
        """The text. Raises: BadRow."""
        if self.problem is not None:
            raise self.problem
        return self.text


def render_prompts(template: str, rows: Sequence[dict[str, Any]]) -> list[RenderedPrompt]:
    """The text that the template writes for the fields of each row.

    Raises: DataError if the template cannot be read, or does not come to an end.
    """
    fix = "correct data.prompt_template"
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
    return [_rendered(answer, fields) for answer, fields in zip(answers, rows, strict=True)]


def _rendered(answer: dict[str, Any], fields: dict[str, Any]) -> RenderedPrompt:
    """The text, if every field of the row is in it; white space may differ."""
    if "refused" in answer:
        reason = f"data.prompt_template refuses it ({answer['refused']})"
        return RenderedPrompt(problem=BadRow(reason))
    text = answer["text"]
    flat = "".join(text.split())
    values = [(name, value) for name, value in fields.items() if name != "history"]
    values += [("history", turn) for pair in fields.get("history", ()) for turn in pair]
    for name, value in values:
        if "".join(value.split()) not in flat:
            problem = BadRow(
                f"data.prompt_template does not write its {name}", f"put {{{{ {name} }}}} into it"
            )
            return RenderedPrompt(problem=problem)
    return RenderedPrompt(text)
