"""lorica generate: the text that a model writes after prompts."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from lorica.cli.options import (
    AS_IN_TRAINING,
    Json,
    MaxNewTokens,
    ModelOptions,
    Seed,
    Switch,
    Temperature,
    Texts,
    TopK,
    TopP,
    check_new_file,
    print_json,
)
from lorica.errors import ConfigError, counted

if TYPE_CHECKING:
    from lorica.generation.generate import Generation

app = App(name="generate")


@app.default
def generate(
    path: str | None = None,
    /,
    *,
    prompt: Texts = None,
    prompts: Path | None = None,
    output: Path | None = None,
    chat: Switch = False,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    condition: Texts = None,
    batch_size: int = 16,
    model: ModelOptions = AS_IN_TRAINING,
    json: Json = False,
) -> None:
    r"""Complete prompts with an adapter, or with a base.

    Parameters
    ----------
    path
        A run, an adapter or a base. Without it, the base of --base.
    prompt
        Text to continue; may be given several times. `-` reads it from standard input.
    prompts
        File of prompts: one for each line of a .txt file, or rows of a .jsonl file with a prompt
        and, for an adapter that is made from one, a condition.
    output
        New file for the texts, as JSON lines: prompt, text, and condition.
    chat
        Write each prompt in the format of the adapter's training: its chat template, or Alpaca's
        text. Without a record of that, use the base's chat template.
    condition
        Condition of an adapter that is made from one (en-fr): one for all prompts, or one for each.
    batch_size
        The most texts that are written at the same time. It changes the speed and the memory.
    """
    texts, conditions = _prompts(prompt, prompts, condition)
    check_new_file(output)
    loaded = model.open(path)

    from lorica.evaluation.predictions import write
    from lorica.generation.generate import generate

    generation = generate(
        loaded,
        texts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        chat=chat,
        conditions=conditions,
        batch_size=batch_size,
    )
    notices = [*loaded.notices, *generation.notices]
    rows = _rows(texts, generation, conditions)
    if output is not None:
        write(output, rows)
    if json:
        print_json(_as_json(rows, generation, notices))
        return
    if output is None:
        print(*generation.texts, sep="\n")
    print(_summary(generation), *notices, sep="\n", file=sys.stderr)


def _prompts(
    given: list[str] | None, file: Path | None, conditions: list[str] | None
) -> tuple[list[str], list[str] | None]:
    """(the prompts, their conditions). Raises: ConfigError if there are none, or two sources."""
    if file is None:
        if not given:
            raise ConfigError("no prompt was given.", fix='pass --prompt "...", or --prompts FILE')
        return [sys.stdin.read() if text == "-" else text for text in given], conditions
    if given:
        raise ConfigError(
            "prompts come from --prompt or from --prompts, not from both.", fix="leave one out"
        )
    from lorica.data.prompt_file import read_prompts

    rows = read_prompts(file)
    if rows.conditions is not None and conditions is not None:
        raise ConfigError(
            f"conditions were given twice: in {file} and with --condition.", fix="leave one out"
        )
    return rows.prompts, conditions or rows.conditions


def _rows(
    prompts: list[str], generation: "Generation", conditions: list[str] | None
) -> list[dict[str, Any]]:
    pairs = zip(prompts, generation.texts, strict=True)
    rows: list[dict[str, Any]] = [{"prompt": prompt, "text": text} for prompt, text in pairs]
    for i, row in enumerate(rows if conditions else ()):
        row["condition"] = conditions[i if len(conditions) > 1 else 0]  # type: ignore[index]
    return rows


def _as_json(
    rows: list[dict[str, Any]], generation: "Generation", notices: list[str]
) -> dict[str, Any]:
    return {
        "texts": [{"prompt": row["prompt"], "text": row["text"]} for row in rows],
        "seconds": round(generation.seconds, 3),
        "tokens": sum(map(len, generation.tokens)),
        "tokens_per_second": round(generation.tokens_per_second, 1),
        "peak_memory_bytes": generation.peak_memory_bytes,
        "lines": notices,
    }


def _summary(generation: "Generation") -> str:
    memory = generation.peak_memory_bytes
    return (
        f"{generation.seconds:.2f} s  {counted(sum(map(len, generation.tokens)), 'token')}  "
        f"{generation.tokens_per_second:,.0f} tokens/s"
        + (f"  {memory / 2**20:,.0f} MiB" if memory else "")
    )
