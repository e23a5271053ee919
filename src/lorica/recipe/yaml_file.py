"""Recipes as text: YAML in, with the line of every setting, and YAML out.

A recipe is plain data: mappings, lists, text, numbers, true/false and null, as in JSON. So
scalars follow YAML 1.2's core schema, and not PyYAML's 1.1 rules: `1e-3` is a number and `no`
is a word. Anchors, tags and a key written twice are refused, because each can change a setting
that the reader of the file does not see.
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

DEPTH = 20
MAX_RECIPE = 2**20
"""Bytes of a recipe."""

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
    for pattern, make in _NUMBERS:
        if pattern.fullmatch(word):
            return make(word)
    return word


def read_yaml(path: Path) -> Settings:
    """Read a YAML file of settings. Tags and keys set twice are left in `mistakes`.

    Raises: ConfigError if it cannot be read, or is no mapping.
    """
    text = _text(path)
    settings = Settings(places={(): str(path)})
    try:
        _check_form(path, text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"{path}:{node.start_mark.line + 1}: a recipe is a list of "
                "`name: value` lines; this is none.",
                fix="see the examples under recipes/",
            )
        if node is not None:
            settings.data = _value(node, (), path, settings)
    except yaml.YAMLError as error:
        raise _unreadable(path, error) from error
    return settings


def parse_inline(text: str) -> Any:
    """A flag's value that is written as a recipe writes it, `{prompt: mr}` or `[a, b]`.

    Text that is no such YAML is returned as it is, for the judge to refuse.
    """
    settings = Settings()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = None if node is None else _value(node, (), Path("flag"), settings)
    except (yaml.YAMLError, RecursionError):
        return text
    return text if settings.mistakes else value


def _check_form(path: Path, text: str) -> None:
    """Refuse aliases and great depth before anything is built of the text."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{path}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(
                f"{where}: *{event.anchor} is an alias; recipes have none.",
                fix="write the value out",
            )
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise ConfigError(f"{where}: the settings are nested too deep to read.")


def _text(path: Path) -> str:
    try:
        return plain_files.read_text(path, MAX_RECIPE, follow=True)
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


def _unreadable(path: Path, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return ConfigError(
        f"{path}{line}: this is not YAML: {problem}.",
        fix="indent with spaces; quote text that holds ': ' or ' #'",
    )


def _value(node: yaml.Node, at: Where, file: Path, settings: Settings) -> Any:
    places, mistakes = settings.places, settings.mistakes
    if not str(node.tag).startswith("tag:yaml.org,2002:") or "python" in node.tag:
        places.setdefault(at, f"{file}:{node.start_mark.line + 1}")
        mistakes.append(Mistake(at, f"{node.tag} is a tag; recipes hold plain values only"))
        return None
    if isinstance(node, yaml.ScalarNode):
        return parse_scalar(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, at, file, settings) for item in node.value]
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = f"{file}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            places[here := (*at, "?")] = line
            mistakes.append(Mistake(here, "the name of a setting must be a word"))
            continue
        here = (*at, key_node.value)
        if key_node.value in data:
            twice = f"{'.'.join(here)} is set twice; first in {places[here]}"
            places[again := (*here, line)] = line
            mistakes.append(Mistake(again, twice))
            continue
        places[here] = line
        data[key_node.value] = _value(value_node, here, file, settings)
    return data


def to_yaml(data: Mapping[str, Any]) -> str:
    """Settings as YAML that `load` reads back to the same data."""
    return "\n".join([*_lines(data, 0), ""])


def _lines(data: Mapping[str, Any], depth: int) -> Iterator[str]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield f"{'  ' * depth}{_word(key)}:"
            yield from _lines(value, depth + 1)
        elif isinstance(value, str):
            yield f"{'  ' * depth}{_word(key)}: {_word(value)}"
        else:  # flow style: every JSON value is YAML
            yield f"{'  ' * depth}{_word(key)}: {_flow(value)}"


def _flow(value: Any) -> str:
    """JSON, with the signs that YAML takes for line breaks or refuses written as escapes."""
    text = json.dumps(value, ensure_ascii=False)
    odd = r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]"
    return re.sub(odd, lambda sign: f"\\u{ord(sign[0]):04x}", text)


def _word(text: str) -> str:
    """A word as it is where YAML reads it back unchanged, otherwise in quotes."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", text) and parse_scalar(text) == text
    return text if plain else _flow(text)
