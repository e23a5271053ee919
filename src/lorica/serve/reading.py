"""What the store asks about an adapter's folder: its content, and whether it can be served."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorica import plain_files
from lorica.data.prompt_format import PromptFormat
from lorica.errors import FileError, LoricaError
from lorica.formats.adapter_file import AdapterFile, read
from lorica.formats.adapter_folder import adapter_folder
from lorica.serve.folder_limits import check_limits
from lorica.serve.generations import Generation
from lorica.serve.identity import bank_key
from lorica.serve.notes import notes_of

MAX_BYTES = 2**32
"""Bytes of the weights of an adapter, where nothing is known of the base."""


@dataclass(frozen=True)
class Findings:
    """prompt_format: how prompts were written in training. notices: what could not be verified.
    notes: for a person, see ModelCard."""

    prompt_format: PromptFormat | None = None
    notices: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


class Reader:
    """Reads folders, and accepts every adapter that is whole. max_bytes: of its weights."""

    def __init__(self, max_bytes: int = MAX_BYTES):
        self.max_bytes = max_bytes

    def read(self, folder: Path) -> AdapterFile:
        """The adapter in `folder`, which shares nothing with its files: they may change.

        Raises: FileError if the folder is damaged, or too large.
        """
        try:
            check_limits(adapter_folder(folder), self.max_bytes)
            return read(folder, max_bytes=self.max_bytes)
        except OSError as error:  # a file went away between two looks at it
            if isinstance(error, LoricaError):
                raise
            raise FileError(
                f"{folder} was changed while it was read: {error.strerror}.",
                fix="load it when it is complete",
            ) from None

    def examine(self, file: AdapterFile) -> Findings:
        """Raises: LoricaError if the adapter cannot be served."""
        return Findings(file.prompt_format, notes=notes_of(file.folder))


def read_again(reader: Reader, generation: Generation, condition: str | None) -> AdapterFile:
    """The adapter that `generation` was loaded with. Raises: FileError if its folder has another
    one now, or none, or became a link, which a load refuses in the root."""
    if not generation.is_link:
        plain_files.kind_of(generation.folder)  # refuses a link
    file = reader.read(generation.folder)
    if bank_key(file, condition) != generation.key_of(condition):
        raise FileError(
            f"{generation.folder} holds another adapter than was loaded from it.",
            loaded=generation.digest,
            here=file.digest,
            fix="load it again",
        )
    return file


def new_generation(
    alias: str,
    number: int,
    folder: Path,
    file: AdapterFile,
    keys: Mapping[str | None, str],
    findings: Findings,
    loaded_at: float,
) -> Generation:
    """What was read and examined, as the generation `number` of an alias."""
    return Generation(
        alias=alias,
        number=number,
        digest=file.digest,
        folder=folder,
        is_link=folder.is_symlink(),
        method=file.spec.method.name,
        positions=file.spec.method.positions(),
        keys=keys,
        prompt_format=findings.prompt_format,
        notes=findings.notes,
        notices=findings.notices,
        loaded_at=loaded_at,
    )
