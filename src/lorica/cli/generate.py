"""lorica generate: the text that a model writes after prompts."""

import sys
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
    TopP,
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
    chat: Switch = False,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    condition: Texts = None,
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
    chat
        Write each prompt in the format of the adapter's training: its chat template, or Alpaca's
        text. Without a record of that, use the base's chat template.
    condition
        Condition of an adapter that is made from one (en-fr): one for all prompts, or one for each.
    """
    if not prompt:
        raise ConfigError("no prompt was given.", fix='pass --prompt "..."')
    prompts = [sys.stdin.read() if text == "-" else text for text in prompt]
    loaded = model.open(path)

    from lorica.generation.generate import generate

    generation = generate(
        loaded,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        chat=chat,
        conditions=condition,
    )
    notices = [*loaded.notices, *generation.notices]
    if json:
        print_json(_as_json(prompts, generation, notices))
    else:
        print(*generation.texts, sep="\n")
        print(_summary(generation), *notices, sep="\n", file=sys.stderr)


def _as_json(prompts: list[str], generation: "Generation", notices: list[str]) -> dict[str, Any]:
    pairs = zip(prompts, generation.texts, strict=True)
    return {
        "texts": [{"prompt": prompt, "text": text} for prompt, text in pairs],
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
