"""lorica generate: what a model writes after given prompts, and how fast."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from lorica.cli.options import Bank, Grade, Quantisation, Seed, open_model, print_json
from lorica.errors import ConfigError

app = App(name="generate")


@app.default
def generate(
    path: Path | None = None,
    /,
    *,
    prompt: Annotated[list[str] | None, Parameter(negative=(), allow_leading_hyphen=True)] = None,
    base: str | None = None,
    chat: Bank = False,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: Seed = 0,
    dtype: Literal["float32", "bfloat16"] | None = None,
    allow_base: Grade | None = None,
    quantisation: Quantisation | None = None,
    condition: Annotated[list[str] | None, Parameter(negative=())] = None,
    json: Bank = False,
) -> None:
    r"""Complete prompts with an adapter, or with a base.

    Parameters
    ----------
    path
        A run, an adapter or a base; without it, --base alone writes.
    prompt
        The text to go on from; may be given several times. `-` reads it from standard input.
    base
        Another place of the base, or the base to use alone: folder, hub id, or bundled.
    chat
        Ask as the adapter was trained: its chat template or Alpaca's text around each prompt;
        without a record of that, the base's chat template.
    max_new_tokens
        Most tokens that are written.
    temperature
        0 takes the most probable token; 1 samples as the model predicts.
    top_p
        Sample from the most probable tokens that make up this share.
    seed
        Of the sampling.
    dtype
        Data type of the weights and of the computation; by default as in training.
    allow_base
        Accept a base that is not the one of training.
    quantisation
        Pack the base's linear layers, or not; by default as in training.
    condition
        What an adapter that is made from a condition is asked for (en-fr); once for all prompts,
        or once for each.
    json
        Print one JSON object.
    """
    if not prompt:
        raise ConfigError("no prompt was given.", fix='pass --prompt "..."')
    prompts = [sys.stdin.read() if text == "-" else text for text in prompt]
    model = open_model(path, base, dtype, allow_base, quantisation)

    from lorica.generation.generate import generate

    done = generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        chat=chat,
        conditions=condition,
    )
    lines = [*model.notices, *done.notices]
    figures = {
        "seconds": round(done.seconds, 3),
        "tokens": sum(map(len, done.tokens)),
        "tokens_per_second": round(done.tokens_per_second, 1),
        "peak_memory_bytes": done.peak_memory_bytes,
    }
    if json:
        pairs = zip(prompts, done.texts, strict=True)
        texts = [{"prompt": prompt, "text": text} for prompt, text in pairs]
        print_json({"texts": texts, **figures, "lines": lines})
        return
    for text in done.texts:
        print(text)
    memory = done.peak_memory_bytes
    print(
        f"{figures['seconds']:.2f} s  {figures['tokens']} tokens  "
        f"{done.tokens_per_second:,.0f} tokens/s"
        + (f"  {memory / 2**20:,.0f} MiB" if memory else ""),
        *lines,
        sep="\n",
        file=sys.stderr,
    )
