"""The command `lorica`: one file per command, imported when it is called.

`main` is the only place that turns an error into a message and an exit status. Nothing here
imports torch, so that help and most mistakes are answered at once.
"""

import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import NoReturn

from cyclopts import App, CycloptsError

from lorica import __version__, progress
from lorica.cli import failures
from lorica.cli.noise import hush
from lorica.errors import Stopped

TERMINATED = 128 + signal.SIGTERM

COMMANDS = {
    "train": "Fine-tune a base on your rows: lorica train RECIPE, or with --flags alone.",
    "check": "Show what would be trained on: lengths, truncation, duplicates, the loss mask.",
    "eval": "Measure an adapter beside its base on held-out rows.",
    "predict": "Give the classes of new rows, with probabilities, by a classifier.",
    "generate": "Complete prompts with an adapter, or with a base.",
    "chat": "Talk with an adapter, or with a base, in the terminal.",
    "merge": "Write base and adapter as one plain transformers model.",
    "export": "Write an adapter as a plain LoRA that PEFT and the serving engines read.",
    "methods": "List the methods, or the settings of one.",
    "info": "Say what a run, an adapter or a base on disk is.",
}

app = App(
    name="lorica",
    help="Fit a frozen language model to a task by training well under 1 % of it.",
    help_epilogue="Every command takes --debug: errors come with a traceback.",
    version=__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for _name, _help in COMMANDS.items():
    app.command(f"lorica.cli.{_name}:app", name=_name, help=_help)


def main() -> NoReturn:
    """The entry point: runs the words of the command line, and exits."""
    signal.signal(signal.SIGTERM, _terminated)
    words = sys.argv[1:]
    hush()
    command = " ".join(["lorica", *words])
    quiet = not {"--json", "--help", "-h", "--version"}.isdisjoint(words)
    with progress.reporting(not quiet), progress.first_word(command):
        code = run(words)
    failures.flush()
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Run one command line. Returns its exit status; errors are told, not raised."""
    debug, as_json = "--debug" in words, "--json" in words
    for stream in (sys.stdout, sys.stderr):  # rows hold signs that a terminal's encoding lacks
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = [word for word in words if word != "--debug"]
    try:
        failures.check_text(words)
        app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return failures.tell(failures.usage(error, words, COMMANDS), as_json=as_json, debug=debug)
    except SystemExit as error:
        if error.code == TERMINATED:
            ended = Stopped(
                "ended by SIGTERM; what was begun and not yet whole is removed.",
                signal=15,
                fix="run it again; a training that has a checkpoint: lorica train --resume RUN",
            )
            return failures.tell(ended, as_json=as_json, debug=debug)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        return failures.tell(error, as_json=as_json, debug=debug)
    return 0


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)
