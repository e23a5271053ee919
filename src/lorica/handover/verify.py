"""Verify an export: replay its recorded answers, where it is served or as others read its files."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lorica import plain_files
from lorica.errors import ConfigError, FileError
from lorica.formats.golden import GOLDEN, Golden, read_golden
from lorica.handover.endpoint import Endpoint, served_model
from lorica.handover.local import open_local
from lorica.handover.replay import Verdict, answers_as, replay

KEY = "OPENAI_API_KEY"


def verify(
    folder: str | Path,
    *,
    endpoint: str | None = None,
    model: str | None = None,
    base_model: str | None = None,
    base: str | None = None,
) -> list[Verdict]:
    """Replay the recorded answers of an export, or of each export in a folder.

    endpoint: URL of a server of OpenAI's API, asked with the key in OPENAI_API_KEY; None: the files
        are loaded in transformers and PEFT.
    model: the name there; None: the name of the export. base_model: the base's name there; None:
        as the server lists it. base: another place of the base, without an endpoint.

    Raises: FileError if there are no recorded answers, or the files cannot be read; EndpointError,
        ResourceError if the server cannot be asked.
    """
    recorded = recorded_in(Path(folder))
    if model is not None and len(recorded) > 1:
        raise ConfigError(
            f"{folder} holds {len(recorded)} exports, and --model names one.",
            fix="name the folder of that export",
        )
    if endpoint is None:
        return [
            replay(golden, open_local(place, golden, base), name)
            for name, (place, golden) in recorded.items()
        ]
    server = Endpoint(endpoint, os.environ.get(KEY))
    verdicts = []
    for name, (_, golden) in recorded.items():
        header = golden.header
        served = served_model(server, model or name, header.base if header else "", base_model)
        verdict = replay(golden, served, model or name)
        if verdict.problems:
            others = {other: g for other, (_, g) in recorded.items() if other != name}
            verdict = _with_another(verdict, others, served)
        verdicts.append(verdict)
    return verdicts


def recorded_in(folder: Path) -> dict[str, tuple[Path, Golden]]:
    """Name -> (folder, recorded answers) of each export at `folder`. Raises: FileError."""
    own = read_golden(folder)
    if own is not None:
        return {_name(own, folder): (folder, own)}
    inside = [folder / name for name in plain_files.names_in(folder.resolve())]
    every = {
        path: golden
        for path in inside
        if path.is_dir() and (golden := read_golden(path)) is not None
    }
    if not every:
        raise FileError(
            f"{folder} has no {GOLDEN}: there is nothing to compare with.",
            fix="lorica export RUN --to RUNTIME --output FOLDER writes one",
        )
    return {_name(golden, path): (path, golden) for path, golden in every.items()}


def _name(golden: Golden, folder: Path) -> str:
    return folder.resolve().name if golden.header is None else golden.header.name


def _with_another(verdict: Verdict, others: Mapping[str, Golden], served) -> Verdict:
    """The verdict, naming the export that answers in its place."""
    for name, golden in others.items():
        if answers_as(golden, served, verdict.allowed):
            problem = f"the answers are those of {name}: the names of the adapters are mixed up"
            return replace(verdict, problems=[problem, *verdict.problems])
    return verdict
