"""Options that several commands have, each with its type and its help; settings given as flags."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

from lorica.errors import ConfigError

if TYPE_CHECKING:
    from lorica.base.load import LoadedModel

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
"""An option without a value."""

Json = Annotated[Switch, Parameter(help="Print one JSON object.")]

Words = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""Words that cyclopts does not interpret: settings as flags, at any depth; see `parse_words`."""

OutputFolder = Annotated[Path, Parameter(help="Folder to write; it must be new or empty.")]

Texts = Annotated[list[str] | None, Parameter(negative=(), allow_leading_hyphen=True)]
"""An option that may be given several times."""

BaseLocation = Annotated[
    str | None,
    Parameter(help="Location of the base, if not as in training: folder, hub id, or bundled."),
]
AllowBase = Annotated[
    Literal["same shapes", "different"] | None,
    Parameter(help="Accept a base that is not the one of training."),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "auto"] | None,
    Parameter(
        help="Data type of the weights and of the computation; auto: that of the base's files. By "
        "default as in training."
    ),
]
Quantisation = Annotated[
    Literal["nf4", "fp4", "int8", "none"] | None,
    Parameter(
        help="Quantise the linear layers of the base to 4 or 8 bits, or not (none). By default "
        "as in training."
    ),
]
Offload = Annotated[
    Literal["disk", "cpu"] | None,
    Parameter(help="Where the weights of the base wait while they are not needed, as in train."),
]
MaxNewTokens = Annotated[int, Parameter(help="Maximum number of new tokens.")]
Temperature = Annotated[
    float, Parameter(help="0: greedy decoding. 1: sample from the model's distribution.")
]
TopP = Annotated[
    float, Parameter(help="Sample from the most probable tokens whose probabilities sum to this.")
]
TopK = Annotated[int, Parameter(help="Sample from this many most probable tokens. 0: all.")]
Seed = Annotated[
    int,
    Parameter(help="Seed of the sampling.", validator=validators.Number(gte=0, lt=2**32)),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a model is opened: where its base is, in which data type, and where its weights wait."""

    base: BaseLocation = None
    dtype: Dtype = None
    allow_base: AllowBase = None
    quantisation: Quantisation = None
    offload: Offload = None

    def as_dict(self) -> dict[str, Any]:
        """As keyword arguments of `evaluate`, `predict` and `open_model`."""
        return asdict(self)

    def open(self, path: str | None) -> "LoadedModel":
        """The model at `path`: a run, an adapter, or a base; None: the base alone.

        Raises: ConfigError if neither is named.
        """
        options = self.as_dict()
        if path is None:
            path = options.pop("base")
        if path is None:
            raise ConfigError("no model was named.", fix="name a run or an adapter, or pass --base")
        from lorica.formats.open_model import open_model

        return open_model(path, **options)[0]


AS_IN_TRAINING = ModelOptions()


def parse_words(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """(positional words, flags): --key value, --key=value, or a bare --key, which means true.

    A flag that is given several times has a list of its values.
    Raises: ConfigError for an unknown short option, the value of a switch, and a second word
        behind a flag that is no path, because lists have commas.
    """
    positional: list[str] = []
    flags: dict[str, list[str]] = {}
    rest = list(words)
    previous = ""  # the flag and value before this word
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            _check_positional(word, previous)
            positional.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        previous = f"--{key} {value}" if value != "true" else ""
        flags.setdefault(key, []).append(value)
    return positional, {key: v[0] if len(v) == 1 else v for key, v in flags.items()}


def single_word(positional: Sequence[str], what: str, *, required: bool = False) -> str | None:
    """The one positional word of a command. Raises: ConfigError if there are more, or none."""
    if len(positional) > 1:
        raise ConfigError(
            f"one {what} is expected, and {len(positional)} were given: {', '.join(positional)}.",
            fix="settings are written --name value",
        )
    if required and not positional:
        raise ConfigError(f"no {what} was given.")
    return positional[0] if positional else None


def check_new_file(path: Path | None) -> None:
    """Raises: ConfigError if `path` exists: it may be the rows themselves; or if its folder does
    not exist or cannot be written to, which is better known before anything is computed."""
    if path is None:
        return
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists and is not overwritten.", fix="name a new file")
    folder = path.parent
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder} for {path.name}.", fix=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{folder} cannot be written to.", fix="choose a folder that you may write to"
        )


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def _check_positional(word: str, previous: str) -> None:
    if word.startswith("-") and len(word) > 1:
        raise ConfigError(f"{word} is not an option.", fix="settings are --name value")
    if word.lower() in ("true", "false"):
        raise ConfigError(
            f"{word} follows a switch, which takes no value.",
            fix="leave it out; to turn a switch off: --no_exact_match, and others alike",
        )
    if previous and not Path(word).exists() and not word.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"{word} follows {previous}, and is not a path.",
            fix=f"separate several values with commas: {previous},{word}",
        )
