"""The command `lorica`: one file per command, imported when it is called.

`main` is the only place that turns an error into a message and an exit status. Nothing here
imports torch, so that help and most mistakes are answered at once.
"""

import gc
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
STOPPED = Stopped(
    "ended by SIGTERM; incomplete files are removed.",
    signal=15,
    fix="run it again; a training that has a checkpoint: lorica train --resume RUN",
)

COMMANDS = {
    "train": "Fine-tune a base on your rows: lorica train RECIPE, or with flags alone.",
    "plan": "Show what a run will cost before it starts: parameters, tokens, memory and time.",
    "check": "Show what would be trained on: lengths, truncation, duplicates, the loss mask.",
    "choose": "Choose method, rank and rate for your rows and your machine, and say why.",
    "eval": "Measure an adapter beside its base on held-out rows.",
    "compare": "Compare methods, ranks and settings: rates tuned, seeds repeated, with statistics.",
    "report": "Write one HTML file about a run, or about a study.",
    "predict": "Predict the classes of new rows, with probabilities, by a classifier.",
    "generate": "Complete prompts with an adapter, or with a base.",
    "chat": "Talk with an adapter, or with a base, in the terminal.",
    "serve": "Serve a base and many adapters over it, by OpenAI's API.",
    "merge": "Write base and adapter as one plain transformers model.",
    "export": "Write an adapter for PEFT, vLLM, SGLang, llama.cpp or Ray, with recorded answers.",
    "verify": "Replay the recorded answers of an export, where it is served or from its files.",
    "combine": "Add adapters of one base, with weights, into one plain LoRA.",
    "diff": "Compare two adapters of one base, layer by layer.",
    "key": "Make an API key for a tenant of lorica serve, and its lines of keys.yaml.",
    "methods": "List the methods, or the settings of one.",
    "info": "Describe a run, an adapter or a base on disk.",
}

app = App(
    name="lorica",
    help="Fit a frozen language model to a task by training well under 1 % of it.",
    help_epilogue="Every command has --debug: an error comes with its traceback.",
    version=__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for _name, _help in COMMANDS.items():
    app.command(f"lorica.cli.{_name}:app", name=_name, help=_help)


def main() -> NoReturn:
    """The entry point: run the command line, and exit."""
    signal.signal(signal.SIGTERM, _terminated)
    words = sys.argv[1:]
    hush()
    command = " ".join(["lorica", *words])
    quiet = not {"--json", "--help", "-h", "--version"}.isdisjoint(words)
    with progress.reporting(not quiet), progress.announce_slow_start(command):
        code = run(words)
    failures.flush()
    gc.freeze()  # the interpreter would look through all of torch for cycles: seconds, for nothing
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Run one command line. Returns its exit status; errors are printed, not raised."""
    debug, as_json = "--debug" in words, "--json" in words
    for stream in (sys.stdout, sys.stderr):
        match stream:
            case TextIOWrapper():  # rows have characters that the terminal's encoding lacks
                stream.reconfigure(errors="backslashreplace")
    words = [word for word in words if word != "--debug"]
    try:
        failures.check_text(words)
        if words and words[0] in COMMANDS:
            app[words[0]].help = None  # its whole docstring, not its line in the list of commands
        app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return failures.print_error(
            failures.usage_error(error, words, COMMANDS), as_json=as_json, debug=debug
        )
    except SystemExit as error:
        if error.code == TERMINATED:
            return failures.print_error(STOPPED, as_json=as_json, debug=debug)
        match error.code:
            case int(code):
                return code
            case message:
                return int(message is not None)
    except BaseException as error:
        return failures.print_error(error, as_json=as_json, debug=debug)
    return 0


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)
