"""Read a recipe from YAML, with the line of every setting, and write settings as YAML.

A recipe is plain data, as in JSON: mappings, lists, text, numbers, true/false and null. Unquoted
words follow YAML 1.2's core schema, not PyYAML's YAML 1.1: `1e-3` is a number, `no` is a word.
Aliases, tags and repeated keys are refused: each can change a setting without the reader of the
file seeing it. PyYAML parses the text to nodes, which carry their lines; it constructs no values.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lorica import plain_files
from lorica.errors import ConfigError, FileError, closest
from lorica.recipe.settings import Mistake, Settings, Where

MAX_DEPTH = 20
MAX_BYTES = 2**20

_NUMBERS = [
    (re.compile(r"[-+]?[0-9]{1,40}"), int),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda word: int(word, 16)),
    (re.compile(r"0o[0-7]+"), lambda word: int(word, 8)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)"), lambda word: float(word.replace(".", ""))),
    (re.compile(r"\.(nan|NaN|NAN)"), lambda word: float("nan")),
]
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {w: w.lower() == "true" for w in ("true", "True", "TRUE", "false", "False", "FALSE")}


def parse_scalar(word: str) -> Any:
    """The value of an unquoted word: a number, true, false, null, or the word itself."""
    if word in _WORDS:
        return _WORDS[word]
    for pattern, convert in _NUMBERS:
        if pattern.fullmatch(word):
            return convert(word)
    return word


def read_yaml(path: Path) -> Settings:
    """Read a YAML file of settings. Tags and repeated keys are left in `Settings.mistakes`.

    Raises: ConfigError if it cannot be read, or is not a mapping.
    """
    return parse_yaml(path, _read_text(path), fix="see the examples under recipes/")


def parse_yaml(path: Path, text: str, *, fix: str) -> Settings:
    """As `read_yaml`, for the text of a file that was read. fix: if it is not a mapping."""
    settings = Settings(places={(): str(path)})
    try:
        _check_structure(path, text)
        match yaml.compose(text, Loader=yaml.SafeLoader):
            case None:
                pass
            case yaml.MappingNode() as node:
                settings.data = _Values(path, settings).value(node, ())
            case node:
                raise ConfigError(
                    f"{path}:{node.start_mark.line + 1}: settings are a list of "
                    "`name: value` lines; this is not one.",
                    fix=fix,
                )
    except yaml.YAMLError as error:
        raise _syntax_error(path, error) from error
    return settings


def parse_inline(text: str) -> Any:
    """A flag's value that is written as in a recipe: `{prompt: mr}` or `[a, b]`.

    Text that is not such YAML is returned unchanged, and validation refuses it.
    """
    settings = Settings()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = None if node is None else _Values(Path("flag"), settings).value(node, ())
    except (yaml.YAMLError, RecursionError):
        return text
    return text if settings.mistakes else value


def _check_structure(path: Path, text: str) -> None:
    """Refuse aliases and deep nesting before anything is built from the text."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{path}:{event.start_mark.line + 1}"
        match event:
            case yaml.AliasEvent():
                raise ConfigError(
                    f"{where}: *{event.anchor} is an alias; settings have none.",
                    fix="write the value out",
                )
            case yaml.CollectionStartEvent():
                depth += 1
            case yaml.CollectionEndEvent():
                depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: the settings are nested too deep to read.")


def _read_text(path: Path) -> str:
    try:
        return plain_files.read_text(path, MAX_BYTES, follow=True)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{line}: the recipe is not UTF-8 text.", fix="save it as UTF-8"
        ) from error
    except FileError as error:
        if path.exists():
            what = f"{path} is a folder, not a recipe." if path.is_dir() else error.what
            raise ConfigError(what, fix="name a .yaml file; for a run folder, --resume") from None
        near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"there is no recipe {path}.", closest=closest(path.name, near)) from None


def _syntax_error(path: Path, error: yaml.YAMLError) -> ConfigError:
    line, problem = "", str(error).splitlines()[0]
    match error:
        case yaml.MarkedYAMLError(problem_mark=mark):
            line, problem = f":{mark.line + 1}" if mark else "", error.problem or problem
    return ConfigError(
        f"{path}{line}: this is not YAML: {problem}.",
        fix="indent with spaces; quote text that holds ': ' or ' #'",
    )


class _Values:
    """Turns YAML nodes into plain values, and notes their lines and mistakes in `settings`."""

    def __init__(self, path: Path, settings: Settings):
        self._path, self._settings = path, settings

    def value(self, node: yaml.Node, at: Where) -> Any:
        """at: the path of the setting that the node is the value of."""
        if not str(node.tag).startswith("tag:yaml.org,2002:") or "python" in node.tag:
            self._settings.places.setdefault(at, self._line(node))
            self._mistake(at, f"{node.tag} is a tag; settings are plain values only")
            return None
        match node:
            case yaml.ScalarNode():
                return parse_scalar(node.value) if node.style is None else node.value
            case yaml.SequenceNode():
                return [self.value(item, at) for item in node.value]
            case _:
                return self._mapping(node, at)

    def _mapping(self, node: yaml.Node, at: Where) -> dict[str, Any]:
        data: dict[str, Any] = {}
        places = self._settings.places
        for key, value in node.value:
            line = self._line(key)
            match key:
                case yaml.ScalarNode(value=str(name)):
                    here = (*at, name)
                case _:
                    places[unnamed := (*at, "?")] = line
                    self._mistake(unnamed, "the name of a setting must be a word")
                    continue
            if name in data:
                places[again := (*here, line)] = line
                self._mistake(again, f"{'.'.join(here)} is set twice; first in {places[here]}")
                continue
            places[here] = line
            data[name] = self.value(value, here)
        return data

    def _line(self, node: yaml.Node) -> str:
        return f"{self._path}:{node.start_mark.line + 1}"

    def _mistake(self, at: Where, what: str) -> None:
        self._settings.mistakes.append(Mistake(at, what))


def to_yaml(data: Mapping[str, Any]) -> str:
    """Settings as YAML that `read_yaml` reads back to the same data."""
    return "\n".join([*_yaml_lines(data, 0), ""])


def _yaml_lines(data: Mapping[str, Any], depth: int) -> Iterator[str]:
    for key, value in data.items():
        name = f"{'  ' * depth}{_word(key)}:"
        match value:
            case {**items} if items:
                yield name
                yield from _yaml_lines(value, depth + 1)
            case str():
                yield f"{name} {_word(value)}"
            case _:  # flow style: every JSON value is YAML
                yield f"{name} {_json(value)}"


def _json(value: Any) -> str:
    """JSON, with escapes for the characters that YAML reads as line breaks, or refuses."""
    text = json.dumps(value, ensure_ascii=False)
    special = r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]"
    return re.sub(special, lambda character: f"\\u{ord(character[0]):04x}", text)


def _word(text: str) -> str:
    """A text without quotes if YAML reads it back unchanged, otherwise in quotes."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", text) and parse_scalar(text) == text
    return text if plain else _json(text)
