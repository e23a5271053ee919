"""The settings under `data`: where the rows are, their format, and how they become examples.

This file imports neither torch nor transformers, so that `--help` and the check of a recipe stay
fast. The docstring under a field is its help text.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Format = Literal["auto", "alpaca", "prompt", "messages", "sharegpt", "text", "label"]
Overlong = Literal["raise", "drop", "truncate", "split"]

MAX_TEMPLATE_BYTES = 1_000_000
# Every column of a row format. `columns` maps these to the names in the file.
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


class WeightedFile(BaseModel):
    """One file of several, and how many times an epoch uses each of its rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str = Field(min_length=1)
    """a file, or a data set of the hub"""
    weight: float = Field(default=1.0, gt=0, le=1_000)
    """how many times an epoch uses each row, on average"""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class DataConfig(BaseModel):
    """Rows for training or evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str
    """a file (.json .jsonl .csv .parquet .txt), or a data set of the Hugging Face hub
    (owner/name, or owner/name:subset); a list of them, or of {path, weight}, is a mixture"""
    mixture: list[WeightedFile] = Field(default_factory=list)
    """the files of a mixture, each as {path, weight}; an epoch uses weight x rows of a file: 2 is
    every row twice, 0.1 another tenth of them in each epoch; set by a path that is a list"""
    split: str = "train"
    """split of a hub data set; files have none"""
    format: Format = "auto"
    """format of the rows; auto detects it from the columns"""
    columns: dict[str, str] = Field(default_factory=dict)
    """our column name to the name in the file, for example {prompt: question}"""
    validation: Annotated[float, Field(ge=0, lt=1)] | str | None = None
    """validation rows: a share of the rows, or another file; 0 for none; by default 5 % of the
    rows, at most 256; they are also evaluated before the first step"""
    completion_only: bool = True
    """learn only the answers; false learns the prompts too"""
    chat_template: str | None = None
    """chat template in place of the base's: Jinja text, a file, or the name of one of the base's
    templates"""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """variables of the chat template, for example {enable_thinking: false}; a row can set its own
    in a column of this name"""
    prompt_template: str | None = None
    """template of the prompt of an alpaca or prompt row: Jinja text or a file, with
    {{ instruction }}, {{ input }}, {{ system }} and {{ history }}, or with {{ prompt }}; by default
    Alpaca's published text, or the prompt unchanged"""
    split_turns: bool = False
    """make one row for each answer of a conversation, with the messages before it: for chat
    templates that write earlier answers differently, for example without their thinking"""
    max_length: int | None = Field(default=None, ge=2)
    """longest row in tokens; by default the context length of the base"""
    overlong: Overlong | None = None
    """what to do with a longer row: raise an error, drop it, truncate it, or split it (plain text
    only); by default split for .txt files, otherwise raise"""
    add_tokens: list[str] = Field(default_factory=list)
    """new tokens, one for each text; their rows in the embedding and the output head are trained,
    and the adapter folder contains the extended tokenizer"""
    limit: int | None = Field(default=None, ge=1)
    """use only this many rows, from the start of the file"""

    streaming: bool = False
    """of a hub data set, fetch only the first data.limit rows, and not all of its files"""
    workers: int | None = Field(default=None, ge=1, le=256)
    """processes that read, render and tokenise the rows; by default 1 for a file below 16 MB, else
    one for each core that may be used, at most 16; the rows are the same with any number"""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        """`data: rows.jsonl` means `data: {path: rows.jsonl}`; a list of paths is a mixture."""
        if isinstance(value, str | list):
            value = {"path": value}
        match value:
            case {"path": [_, *_] as files}:
                value = {**value, "mixture": files}
        match value:
            case {"mixture": [_, *_] as files}:
                value = {**value, "path": ", ".join(map(_path_of, files))}
        return value

    @model_validator(mode="after")
    def _check_streaming(self) -> "DataConfig":
        if self.streaming and self.limit is None:
            raise ValueError(
                "streaming needs data.limit: which rows are trained on, and in which order, must "
                "be known before the first step"
            )
        return self

    @field_validator("path")
    @classmethod
    def _check_path(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the path is empty; name a file or a data set of the hub")
        return value

    @field_validator("add_tokens")
    @classmethod
    def _check_tokens(cls, value: list[str]) -> list[str]:
        if any(not token.strip() for token in value) or len(set(value)) < len(value):
            raise ValueError("each token must be a different text, and not blank")
        return value

    @field_validator("chat_template", "prompt_template")
    @classmethod
    def _read_template_file(cls, value: str | None) -> str | None:
        """Replace the name of a file by its text, so that a run records the text."""
        return value if value is None or "{" in value else _read_template(value)

    @field_validator("prompt_template")
    @classmethod
    def _check_prompt_template(cls, value: str | None) -> str | None:
        if value is not None and "{" not in value:
            raise ValueError(f"it is neither a file nor Jinja text with a field in it: {value!r}")
        return value

    @field_validator("validation", mode="before")
    @classmethod
    def _parse_share(cls, value: Any) -> Any:
        """A number that is a text (from a flag) is a share, not a file."""
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                return value
        return value

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, value: dict[str, str]) -> dict[str, str]:
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


def _path_of(file: Any) -> str:
    """The path of a file of a mixture, which is not validated yet."""
    match file:
        case {"path": path} | WeightedFile(path=path) | path:
            return str(path)


def _read_template(name: str) -> str:
    """The text of the file `name`; `name` itself if it does not look like a file name."""
    path = Path(name)
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise ValueError(f"there is no file {name}; name one, or give the Jinja text itself")
        return name
    if path.stat().st_size > MAX_TEMPLATE_BYTES:
        raise ValueError(f"{name} is larger than {MAX_TEMPLATE_BYTES:,} bytes, so not a template")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8; convert it, or name another file") from None
