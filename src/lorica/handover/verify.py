"""Verify an export: replay its recorded answers, where it is served or as others read its files."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lorica import plain_files
from lorica.errors import ConfigError, FileError, listed
from lorica.formats.adapter_folder import is_adapter
from lorica.formats.golden import GOLDEN, Golden, read_golden
from lorica.handover.endpoint import Endpoint
from lorica.handover.local import open_local
from lorica.handover.replay import Verdict, answers_as, replay, replayable
from lorica.handover.served_model import served_model

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
    _check_options(endpoint, model, base_model, base)
    recorded = recorded_in(Path(folder))
    if model is not None and len(recorded) > 1:
        raise ConfigError(
            f"{folder} holds {len(recorded)} exports, and --model names one.",
            fix="name the folder of that export",
        )
    if endpoint is None:
        return [
            replay(golden, open_local(place, golden, base), name, in_float32=True)
            for name, (place, golden) in recorded.items()
        ]
    server = Endpoint(endpoint, os.environ.get(KEY))
    verdicts = []
    for name, (_, golden) in recorded.items():
        header = golden.header
        served = served_model(server, model or name, header.base if header else "", base_model)
        asked = name if model in (None, name) else f"{name} as {model}"
        verdict = replay(golden, served, asked)
        if verdict.problems:
            others = {other: g for other, (_, g) in recorded.items() if other != name}
            verdict = _with_another(verdict, others, served)
        verdicts.append(verdict)
    return verdicts


def recorded_in(folder: Path) -> dict[str, tuple[Path, Golden]]:
    """Name -> (folder, recorded answers) of each export at `folder`. Raises: FileError."""
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise FileError(f"{folder} {what}.", fix="name the folder that lorica export --to wrote")
    own = _read(folder)
    if own is not None:
        return {_name(own, folder): (folder, own)}
    inside = [folder / name for name in plain_files.names_in(folder.resolve())]
    every = {path: _read(path) for path in inside if path.is_dir()}
    recorded = {path: golden for path, golden in every.items() if golden is not None}
    without = [path for path in (folder, *every) if path not in recorded and _is_export(path)]
    if not recorded or without:
        raise FileError(
            f"{listed(without or [folder])} has no {GOLDEN}: there is nothing to compare with.",
            fix="lorica export RUN --to RUNTIME --output FOLDER writes one",
        )
    by_name: dict[str, tuple[Path, Golden]] = {}
    for path, golden in recorded.items():
        name = _name(golden, path)
        if name in by_name:
            raise FileError(
                f"{by_name[name][0]} and {path} are both of an export {name}.",
                fix="verify them one by one, with --model NAME for its name on the server",
            )
        by_name[name] = (path, golden)
    for name, (path, _) in by_name.items():
        if name != path.name:
            raise FileError(
                f"{path} holds the export {name}: start.sh serves it by the name of its folder.",
                fix=f"rename the folder to {name}",
            )
    return by_name


def _read(folder: Path) -> Golden | None:
    """The recorded answers in a folder. Raises: FileError if they cannot be replayed."""
    golden = read_golden(folder)
    if golden is not None and not replayable(golden):
        raise FileError(
            f"no row of {folder / GOLDEN} has prompt and base_logprobs: none can be replayed.",
            fix="export the adapter again: lorica export RUN --to RUNTIME --output FOLDER",
        )
    return golden


def _is_export(folder: Path) -> bool:
    """Whether a folder holds an adapter or a model."""
    names = plain_files.names_in(folder.resolve())
    return is_adapter(folder) or "config.json" in names or any(n.endswith(".gguf") for n in names)


def _check_options(
    endpoint: str | None, model: str | None, base_model: str | None, base: str | None
) -> None:
    """Raises: ConfigError for an option that would be passed over."""
    if endpoint is None:
        unused = {"--model": model, "--base-model": base_model}
        fix = "add --endpoint URL, or leave it out"
    else:
        unused, fix = {"--base": base}, "leave --endpoint out, or name it there by --base-model"
    for option, value in unused.items():
        if value is not None:
            where = "of a server" if endpoint is None else "for files"
            raise ConfigError(f"{option} is {value!r:.200}; it is {where}.", fix=fix)


def _name(golden: Golden, folder: Path) -> str:
    return folder.resolve().name if golden.header is None else golden.header.name


def _with_another(verdict: Verdict, others: Mapping[str, Golden], served) -> Verdict:
    """The verdict, naming the export that answers in its place."""
    for name, golden in others.items():
        if answers_as(golden, served, verdict.allowed):
            problem = f"the answers are those of {name}: the names of the adapters are mixed up"
            return replace(verdict, problems=[problem, *verdict.problems])
    return verdict
