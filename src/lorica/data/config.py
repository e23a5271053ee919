"""What the rows are and how they are used: the settings of the data layer.

This file imports neither torch nor transformers, so that `--help` and the check of a recipe
stay quick. The docstring under a field is its line in `--help`.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Format = Literal["auto", "alpaca", "prompt", "messages", "sharegpt", "text", "label"]
Overlong = Literal["raise", "drop", "truncate", "split"]

LARGEST_TEMPLATE = 1_000_000
# Every column that a row shape knows. `columns` maps these to the names in the file.
COLUMNS = (
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "messages",
    "conversations",
    "system",
    "tools",
    "chat_template_kwargs",
    "history",
    "text",
    "label",
    "condition",
    "references",
)


class DataConfig(BaseModel):
    """Rows to train on, or to measure on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str
    """A file (.json .jsonl .csv .parquet .txt), or a data set of the hub (owner/name, or
    owner/name:subset)."""
    split: str = "train"
    """Which split of a hub data set is read; files have none."""
    format: Format = "auto"
    """The shape of a row. auto finds it from the columns."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column name to the one in the file, for example {prompt: question}."""
    validation: Annotated[float, Field(ge=0, lt=1)] | str | None = None
    """Share of the rows that is kept for evaluation, or another file; 0 keeps none. By default a
    twentieth, at most 256 rows: they are evaluated before the first step as well."""
    completion_only: bool = True
    """Learn the answers only; false learns the prompts as well."""
    chat_template: str | None = None
    """Chat template in place of the base's: its Jinja text, a file, or the name of one of the
    base's templates."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, for example {enable_thinking: false}; a row may set its own
    in a column of this name."""
    prompt_template: str | None = None
    """Text before the answer of an alpaca or prompt row, Jinja or a file of it, with
    {{ instruction }}, {{ input }}, {{ system }} and {{ history }}, or with {{ prompt }}. By default
    Alpaca's published text, or the prompt as it is."""
    split_turns: bool = False
    """Make one row of each answer of a conversation, with what stands before it: for templates
    that write earlier answers otherwise once others follow (thinking)."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest row, in tokens; by default what the base can take."""
    overlong: Overlong | None = None
    """What happens to a longer row. By default split for .txt, else raise."""
    add_tokens: list[str] = Field(default_factory=list)
    """Texts that become one token each: they get rows in the embedding and the head, which are
    trained, and the adapter brings its tokenizer."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows of the file, this many."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("path")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the path is empty; name a file or a data set of the hub")
        return value

    @field_validator("add_tokens")
    @classmethod
    def _tokens(cls, value: list[str]) -> list[str]:
        if any(not token.strip() for token in value) or len(set(value)) < len(value):
            raise ValueError("each token must be a text of its own")
        return value

    @field_validator("chat_template", "prompt_template")
    @classmethod
    def _template_text(cls, value: str | None) -> str | None:
        """The text of a template that is named by its file, so that a run records the text."""
        return value if value is None or "{" in value else _read_template(value)

    @field_validator("prompt_template")
    @classmethod
    def _with_fields(cls, value: str | None) -> str | None:
        if value is not None and "{" not in value:
            raise ValueError(f"it is neither a file nor Jinja text with a field in it: {value!r}")
        return value

    @field_validator("validation", mode="before")
    @classmethod
    def _number_in_words(cls, value: Any) -> Any:
        """A share that arrives as text, from a flag, is still a share."""
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                return value
        return value

    @field_validator("columns")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        for key in value:
            if key not in COLUMNS:
                near = get_close_matches(key, COLUMNS, n=1, cutoff=0.4)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(
                    f"{key!r} is not a column that lorica knows ({', '.join(COLUMNS)}){hint} "
                    "Write it as {our name: name in the file}."
                )
        twice = {name for name in value.values() if list(value.values()).count(name) > 1}
        if twice:
            raise ValueError(f"two of our columns name the same one of the file: {sorted(twice)}")
        return value


def _read_template(name: str) -> str:
    """The text of the file `name`; `name` itself if it can be no file's name."""
    path = Path(name)
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise ValueError(f"there is no file {name}; name one, or give the Jinja text itself")
        return name
    if path.stat().st_size > LARGEST_TEMPLATE:
        raise ValueError(f"{name} is larger than {LARGEST_TEMPLATE:,} bytes, and no template")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8; convert it, or name another file") from None
