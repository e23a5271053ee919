"""lorica verify: an export answers as in training, where it is served or as others read it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from lorica.cli.options import Json, print_json

if TYPE_CHECKING:
    from lorica.handover.replay import Verdict

app = App(name="verify")
LEGEND = (
    "difference: largest of a log-probability from the recorded one, in nats; base: that of the "
    "base alone; effect: how far the adapter moves them"
)


@app.default
def verify(
    folder: Path,
    /,
    *,
    endpoint: str | None = None,
    model: str | None = None,
    base_model: Annotated[str | None, Parameter(name="--base-model")] = None,
    base: str | None = None,
    json: Json = False,
) -> None:
    """Replay the recorded answers of an export, and compare log-probabilities, template and stops.

    Exit status 0: all are right; 1: not.

    Parameters
    ----------
    folder
        What lorica export --to wrote; it has golden.jsonl, or folders that have one.
    endpoint
        URL of the server that has the adapter: vLLM, SGLang, llama.cpp's server, Ray Serve or
        lorica serve. The key in OPENAI_API_KEY is sent, if there is one. Without an endpoint the
        files are loaded in transformers and PEFT.
    model
        Name of the adapter there, if it is not that of the export.
    base_model
        Name of the base there, if the server's list does not tell.
    base
        Location of the base, without an endpoint, if it is not where it was.
    """
    from lorica.handover.verify import verify as verify_export

    verdicts = verify_export(
        folder, endpoint=endpoint, model=model, base_model=base_model, base=base
    )
    if json:
        print_json({"verdicts": [verdict.as_dict() for verdict in verdicts]})
    else:
        print(*lines(verdicts), sep="\n")
    raise SystemExit(int(any(verdict.problems for verdict in verdicts)))


def lines(verdicts: "list[Verdict]") -> list[str]:
    """The verdicts as a table, and what is wrong below it."""
    width = max(len("adapter"), *(len(v.name) for v in verdicts))
    rows = [f"{'adapter':<{width}}  places  difference   allowed      base   effect"]
    for v in verdicts:
        base = "" if v.base_worst is None else f"{v.base_worst:.2g}"
        rows.append(
            f"{v.name:<{width}}  {v.places:>6}  {v.worst:>10.2g}  {v.allowed:>8.2g}  {base:>8}  "
            f"{v.effect:>7.3g}  {'wrong' if v.problems else 'right'}"
        )
    notes = [f"{v.name}: {text}" for v in verdicts for text in (*v.problems, *v.notices)]
    return [
        *rows,
        *(["", *notes] if notes else []),
        "",
        LEGEND,
    ]
