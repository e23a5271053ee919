"""lorica chat: a conversation in the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App

from lorica.cli.options import Grade, Quantisation, Seed, open_model
from lorica.errors import DataError

if TYPE_CHECKING:
    from lorica.generation.chat import Chat

app = App(name="chat")

HELP = "/reset begins anew, /quit ends"


@app.default
def chat(
    path: Path | None = None,
    /,
    *,
    base: str | None = None,
    system: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: Seed = 0,
    dtype: Literal["float32", "bfloat16"] | None = None,
    allow_base: Grade | None = None,
    quantisation: Quantisation | None = None,
    condition: str | None = None,
) -> None:
    """Talk with an adapter, or with a base, in the terminal.

    Parameters
    ----------
    path
        A run, an adapter or a base; without it, --base alone speaks.
    base
        Another place of the base, or the base to use alone: folder, hub id, or bundled.
    system
        A system message before the conversation.
    max_new_tokens
        Most tokens of an answer.
    temperature
        0 takes the most probable token; 1 samples as the model predicts.
    top_p
        Sample from the most probable tokens that make up this share.
    seed
        Of the sampling; each answer draws from the next one.
    dtype
        Data type of the weights and of the computation; by default as in training.
    allow_base
        Accept a base that is not the one of training.
    quantisation
        Pack the base's linear layers, or not; by default as in training.
    condition
        What an adapter that is made from a condition is asked for (en-fr).
    """
    model = open_model(path, base, dtype, allow_base, quantisation)

    from lorica.generation.chat import Chat
    from lorica.generation.sampling import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
    )
    talk = Chat(model, system=system, sampling=sampling, condition=condition)
    _aside([*model.notices, *talk.notices, HELP])
    while (said := _ask()) not in (None, "/quit", "/exit"):
        if said == "/reset":
            talk = Chat(model, system=system, sampling=sampling, condition=condition)
        elif said:
            _answer(talk, str(said))


def _ask() -> str | None:
    """The next line; None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _answer(talk: "Chat", said: str) -> None:
    """Write the answer as it comes. A message that cannot be answered does not end the talk."""
    told = len(talk.notices)
    try:
        talk.answer(said, on_text=lambda text: print(text, end="", flush=True))
    except DataError as error:
        _aside([f"{type(error).__name__}: {error}"])
    except KeyboardInterrupt:
        _aside(["(stopped; the message is not kept)"])
    print()
    _aside(talk.notices[told:])


def _aside(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)
