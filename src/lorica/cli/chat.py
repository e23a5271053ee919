"""lorica chat: a conversation in the terminal."""

import sys
from typing import TYPE_CHECKING

from cyclopts import App

from lorica.cli.options import (
    AS_IN_TRAINING,
    MaxNewTokens,
    ModelOptions,
    Seed,
    Temperature,
    TopK,
    TopP,
)
from lorica.errors import DataError

if TYPE_CHECKING:
    from lorica.generation.chat import Chat

app = App(name="chat")

HELP = "/reset starts a new conversation, /quit ends"


@app.default
def chat(
    path: str | None = None,
    /,
    *,
    system: str | None = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    seed: Seed = 0,
    condition: str | None = None,
    model: ModelOptions = AS_IN_TRAINING,
) -> None:
    """Talk with an adapter, or with a base, in the terminal.

    Parameters
    ----------
    path
        A run, an adapter or a base. Without it, the base of --base.
    system
        System message at the start of the conversation.
    condition
        Condition of an adapter that is made from one (en-fr).
    """
    loaded = model.open(path)

    from lorica.generation.chat import Chat
    from lorica.generation.sampling import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    conversation = Chat(loaded, system=system, sampling=sampling, condition=condition)
    _print_aside([*loaded.notices, *conversation.notices, HELP])
    while (text := _read_message()) not in (None, "/quit", "/exit"):
        if text == "/reset":
            conversation = Chat(loaded, system=system, sampling=sampling, condition=condition)
        elif text:
            _answer(conversation, str(text))


def _read_message() -> str | None:
    """The next line of the input; None at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _answer(conversation: "Chat", text: str) -> None:
    """Stream the answer. A message that cannot be answered does not end the conversation."""
    printed = len(conversation.notices)
    try:
        conversation.answer(text, on_text=lambda piece: print(piece, end="", flush=True))
    except DataError as error:
        _print_aside([f"{type(error).__name__}: {error}"])
    except KeyboardInterrupt:
        _print_aside(["(stopped; the message is not kept)"])
    print()
    _print_aside(conversation.notices[printed:])


def _print_aside(lines: list[str]) -> None:
    """Print to stderr, so that stdout has the answers alone."""
    for line in lines:
        print(line, file=sys.stderr)
