"""manifest.json of an adapter folder: what was trained, on which base, and digests of the files."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from lorica import plain_files
from lorica.base.fingerprint import Fingerprint
from lorica.core.adapter import Method
from lorica.core.bank import Spec
from lorica.core.targets import Targets
from lorica.data.classes import class_names_fault
from lorica.data.prompt_format import PromptFormat, prompt_format_from_dict
from lorica.errors import ConfigError, FileError, listed
from lorica.formats import commit
from lorica.formats.adapter_folder import MANIFEST, WEIGHTS
from lorica.recipe.values import is_valid, parse_strict
from lorica.recipe.versions import versions

FORMAT = 1
FIELDS: dict[str, Any] = {
    "method": dict[str, Any],
    "targets": dict[str, Any],
    "base": dict[str, Any],
    "files": dict[str, dict[str, Any]],
    "seed": Annotated[int, Field(ge=0, lt=2**62)],
    "dtype": str | None,
    "labels": list[str] | None,
    "versions": dict[str, str],
}
"""Fields of a manifest and their types. Only the first four are required."""
DIGEST = {"bytes": Annotated[int, Field(ge=0)], "sha256": str}


@dataclass(frozen=True)
class Manifest:
    """The fields of manifest.json, validated.

    spec: method, targets and seed. base: the base that the adapter was trained on.
    files: name -> {"bytes", "sha256"} of every other file of the folder but the model card.
    dtype: what training computed in; None: not known. labels: classes of a sequence classifier.
    prompt_format: how rows were written as text; None: not recorded.
    """

    spec: Spec
    base: Fingerprint
    files: Mapping[str, Mapping[str, Any]]
    dtype: str | None = None
    labels: list[str] | None = None
    prompt_format: PromptFormat | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, as it is written."""
        spec = self.spec
        return {
            "format": FORMAT,
            "method": {"name": spec.method.name, **asdict(spec.method)},
            "targets": asdict(spec.targets),
            "seed": spec.seed,
            "base": self.base.as_dict(),
            "dtype": self.dtype,
            "labels": self.labels,
            "prompt_format": self.prompt_format and self.prompt_format.as_dict(),
            "files": self.files,
            "versions": versions(),
        }


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an adapter folder; None: it has none. Raises: FileError if it is damaged."""
    path = folder / MANIFEST
    if not plain_files.is_file(path):
        return None
    fields = commit.read_json(path)
    _check_form(fields, path)
    _check_labels(fields.get("labels"), path)
    return Manifest(
        spec=_spec(fields, path),
        base=_base(fields["base"], path),
        files=fields["files"],
        dtype=fields.get("dtype"),
        labels=fields.get("labels"),
        prompt_format=prompt_format_from_dict(fields.get("prompt_format"), str(path)),
    )


def _check_form(fields: Mapping[str, Any], path: Path) -> None:
    """Raises: FileError if a field is missing, or of another type."""
    form = fields.get("format", FORMAT)
    if type(form) is not int or form != FORMAT:
        raise FileError(
            f"{path} has format {form!r:.80}; this lorica reads {FORMAT}.",
            fix="install the release that wrote it",
            versions=str(fields.get("versions"))[:200],
        )
    required = list(FIELDS)[:4]
    wrong = [
        key
        for key in FIELDS
        if (key in fields or key in required) and not is_valid(FIELDS[key], fields.get(key))
    ]
    if wrong or "format" not in fields:
        raise FileError(
            f"{path} lacks {', '.join(wrong) or 'format'}, or its type is wrong.",
            fix="copy the folder again",
        )
    files = fields["files"]
    bad = [
        name
        for name, digest in files.items()
        if not all(is_valid(kind, digest.get(key)) for key, kind in DIGEST.items())
    ]
    if bad or WEIGHTS not in files:
        raise FileError(
            f"{path} has no digest of {listed(bad or [WEIGHTS])}.", fix="copy the folder again"
        )


def _check_labels(labels: list[str] | None, path: Path) -> None:
    if labels is not None and (fault := class_names_fault(labels)):
        raise FileError(
            f"{path} has labels that are not the names of classes: {fault}.",
            labels=listed(map(repr, labels), 12),
            fix="copy the folder again",
        )


def _base(fields: Mapping[str, Any], path: Path) -> Fingerprint:
    try:
        Fingerprint(**fields)  # a key too many is a TypeError
        return TypeAdapter(Fingerprint).validate_json(json.dumps(fields), strict=True)
    except (TypeError, ValueError) as error:
        raise FileError(
            f"the base fingerprint in {path} is damaged.", why=error, fix="copy the folder again"
        ) from None


def _spec(fields: Mapping[str, Any], path: Path) -> Spec:
    try:
        settings = dict(fields["method"])
        method = parse_strict(Method.named(settings.pop("name")), settings)
        return Spec(method, parse_strict(Targets, fields["targets"]), fields.get("seed", 0))
    except ValidationError as error:
        wrong = {
            ".".join(map(str, e["loc"])) or "method": f"{e['input']!r:.80}: {e['msg']}"
            for e in error.errors()[:8]
        }
        raise FileError(f"{path} is damaged.", **wrong, fix="copy the folder again") from None
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} is damaged.", why=error, fix="copy the folder again") from None
