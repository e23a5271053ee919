"""Every setting, written wrong in every way: the message names the place, the key and the fix."""

import re

import pytest
from annotated_types import Ge, Gt, Le, Lt

from lorica.errors import ConfigError
from lorica.recipe.validate import setting_at, setting_names
from lorica.recipe.values import is_valid
from lorica.recipe.yaml_file import to_yaml
from lorica.training.config import TrainConfig, read

SETTINGS = setting_names(TrainConfig)
BASIC = {"seed": 1, "data": {"path": "rows.jsonl"}, "method": {"name": "lora"}}


def written(tmp_path, key: str, value: object, old: str | None = None):
    """A recipe with `key` set, and the line that it stands on."""
    *parents, leaf = key.split(".")
    data = {name: dict(part) if isinstance(part, dict) else part for name, part in BASIC.items()}
    node = data
    for parent in parents:
        node = node.setdefault(parent, {})
    if old:
        node.pop(old, None)
    node.pop(leaf, None)
    node[leaf] = value
    path = tmp_path / "recipe.yaml"
    path.write_text("# a comment\n\n" + to_yaml(data))
    lines = path.read_text().splitlines()
    (line,) = [i for i, text in enumerate(lines, 1) if text.strip().startswith(f"{leaf}:")]
    return path, line


def misspelt(key: str) -> str:
    parents, _, leaf = key.rpartition(".")
    at = next(i for i in range(len(leaf) - 1) if leaf[i] != leaf[i + 1])
    swapped = leaf[:at] + leaf[at + 1] + leaf[at] + leaf[at + 2 :]
    return f"{parents}.{swapped}" if parents else swapped


def type_of(key: str):
    return setting_at(TrainConfig, tuple(key.split(".")))[1]


@pytest.mark.parametrize("key", SETTINGS)
def test_a_typo_names_the_place_and_the_right_key(tmp_path, key):
    wrong = misspelt(key)
    path, line = written(tmp_path, wrong, 1, old=key.rpartition(".")[2])
    with pytest.raises(ConfigError) as error:
        read(path)
    assert f"{path}:{line}: {wrong} is not a setting; closest {key}" in str(error.value)


@pytest.mark.parametrize("key", SETTINGS)
def test_typo_in_a_flag(key):
    wrong = misspelt(key)
    with pytest.raises(ConfigError) as error:
        read(None, {"data.path": "rows.jsonl", wrong.replace("_", "-"): "1"})
    assert f"--{wrong.replace('_', '-')} is not a setting" in str(error.value).replace("_", "-")
    assert f"closest --{key}" in str(error.value)


@pytest.mark.parametrize("key", SETTINGS)
def test_a_wrong_type_names_the_place_and_the_right_type(tmp_path, key):
    kind = type_of(key)
    wrongs = [3.5, "seven", True, [[1]], {"x": {"y": 1}}]
    value = next(
        wrong
        for wrong in wrongs
        if not is_valid(kind, wrong)
        and not (key in ("data", "method") and isinstance(wrong, str | dict))
    )
    path, line = written(tmp_path, key, value)
    with pytest.raises(ConfigError) as error:
        read(path)
    message = str(error.value)
    assert f"{path}:{line}: {key} is " in message or f"{path}:{line + 1}: {key} is " in message
    assert f"{key} is " in message and "; it must be " in message


def bounded() -> list[tuple[str, object]]:
    values = []
    for key in SETTINGS:
        text = repr(type_of(key))
        for limit, outside in ((Ge, -1), (Gt, 0), (Lt, 0), (Le, 1)):
            name = limit.__name__
            if bound := re.search(rf"{name}\({name.lower()}=(\d+)", text):
                above = limit in (Lt, Le)
                value = outside = int(bound[1]) + outside if above else outside
                if "dict[" in text:
                    value = {"q": outside}
                elif "list[" in text:
                    value = [outside]
                values.append((key, value))
    return values


@pytest.mark.parametrize(("key", "value"), bounded())
def test_out_of_range(tmp_path, key, value):
    path, line = written(tmp_path, key, value)
    with pytest.raises(ConfigError) as error:
        read(path)
    message = str(error.value)
    assert f"{path}:{line}" in message or f"{path}:{line + 1}" in message
    assert f"{key} is " in message and "it must be" in message


def test_the_bounds_are_tested():
    assert len(bounded()) > 15


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("data: x\nmethod: lorra\n", ":2: method.name: there is no method 'lorra'; closest lora"),
        ("data: x\nmethod: {r: 0}\n", ":2: method.r is 0; it must be "),
        ("data: x\nmethod:\n  r: 4\n  alhpa: 3\n", ":4: method.alhpa is not a setting; closest "),
        ("data: x\nmethod:\n  r: yes\n", ':3: method.r is "yes"; it must be a whole number'),
        ("data: x\nr: 4\n", ":2: r is not a setting; closest method.r"),
        ("data: x\nlr: 4\n", ":2: lr is not a setting; closest learning_rate"),
        ("data: x\nmax_length: 4\n", ":2: max_length is not a setting; closest data.max_length"),
        ("data: x\nepochs: 1\nmax_steps: 2\n", ":2: epochs is 1.0 and max_steps 2; give one"),
        ("data: x\nepochs: null\nmax_steps: null\n", ":2: epochs and max_steps are both null"),
        ("data: x\nwarmup_steps: 9\nmax_steps: 9\n", ":2: warmup_steps is 9 of max_steps 9"),
        ("data: x\nwarmup_steps: 9\nwarmup_ratio: 0.1\n", ":3: warmup_ratio is 0.1 and warmup_"),
        ("data: x\nearly_stopping_patience: 2\n", ":2: early_stopping_patience needs eval_steps"),
        ("data: {path: x, validation: 0}\neval_steps: 2\n", ":2: eval_steps needs validation rows"),
        ("data: x\nmax_steps: 2\neval_steps: 3\n", ":3: eval_steps is 3, more than max_steps 2"),
        ("data: x\nseed: 1\nseed: 2\n", ":3: seed is set twice; first in "),
        ("data: x\nbase: !!python/object:os.system x\n", ":2: tag:yaml.org,2002:python/object"),
        ("data: x\nbase: &a x\noutput: *a\n", ":3: *a is an alias"),
        ("data: x\n  seed: 1\n", ":2: this is not YAML: "),
        ("data: x\n\tseed: 1\n", ":2: this is not YAML: "),
        ("- data\n", ":1: settings are a list of `name: value` lines"),
        ("", ": data was not given"),
        ("data: x\n? [a, b]\n: 3\n", ":2: the name of a setting must be a word"),
        ("data: x\n---\nseed: 1\n", ":2: this is not YAML"),
        ("data: x\nlearning_rate: .nan\n", ":2: learning_rate is NaN; it must be a number"),
        ("data: {path: x, columns: {promt: q}}\n", "promt"),
        ("data: " + "[" * 3000 + "]" * 3000, "nested too deep"),
    ],
)
def test_mistakes_that_need_a_recipe(tmp_path, recipe, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(ConfigError) as error:
        read(path)
    assert message in str(error.value)
    assert "recipe.yaml" in str(error.value)


def test_all_mistakes_are_reported_in_the_order_of_the_lines(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "learning_rat: 1\ndata:\n  path: x\n  limit: 0\nmethod: {r: 0, rr: 1}\n"
        "epochs: 1\nmax_steps: 5\nseed: true\nseed: 3\n"
    )
    with pytest.raises(ConfigError) as error:
        read(path, {"optimizer": "adam", "sede": "3"})
    message = str(error.value).splitlines()
    assert message[0] == "9 settings are wrong:"
    lines = [int(text.split(":")[1]) for text in message if f"  {path}:" in text]
    assert lines == [1, 4, 5, 5, 6, 8, 9]
    assert sum("  --" in text for text in message) == 2


def test_recipes_that_cannot_be_read(tmp_path):
    (tmp_path / "demo.yaml").write_bytes(b"data: x\nbase: \xff\n")
    with pytest.raises(ConfigError, match=r"demo.yaml:2: the recipe is not UTF-8"):
        read(tmp_path / "demo.yaml")
    with pytest.raises(ConfigError, match=r"(?s)no recipe .*demmo.yaml.*closest.*demo.yaml"):
        read(tmp_path / "demmo.yaml")
    with pytest.raises(ConfigError, match="is a folder, not a recipe"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"learning_rate": "fast"}, '--learning_rate is "fast"; it must be a number (above 0)'),
        ({"data.limit": "few"}, '--data.limit is "few"; it must be a whole number'),
        ({"seed.x": "1"}, "--seed.x is not a setting"),
        ({"": "1"}, "-- is not a setting"),
        ({"data.": "1"}, "--data. is not a setting"),
        ({"method.": "1"}, "--method. is not a setting"),
        ({"data.columns.": "1"}, "--data.columns. is not a setting"),
        ({"method.r.x": "1"}, "--method.r.x is not a setting; closest --method.r"),
        ({"data.path.x": "1"}, "--data.path.x is not a setting"),
        ({"data.path": ""}, "--data.path: the path is empty"),
        ({"output": ""}, "--output is null; it must be text"),
        ({"seed": "9" * 5000}, "--seed is Infinity; it must be a whole number"),
        ({"rank_pattern": "[1]"}, "--rank_pattern is [1]; it must be a mapping"),
        ({"method.r": "x"}, '--method.r is "x"; it must be a whole number'),
        ({"method": "lorra"}, "there is no method 'lorra'; closest lora"),
        ({"epochs": "1", "max_steps": "2"}, "--epochs is 1.0 and max_steps 2; give one of them"),
        ({"seed": ["1", "2"]}, "--seed is [1, 2]; it must be a whole number"),
    ],
)
def test_mistakes_in_flags(flags, message):
    with pytest.raises(ConfigError) as error:
        read(None, {"data": "rows.jsonl", **flags})
    assert message in str(error.value)


def test_build_method_of_a_config_made_in_python():
    config = TrainConfig.model_validate({"data": "x", "method": {"r": 0, "alhpa": 1}})
    with pytest.raises(ConfigError, match=r"(?s)2 settings are wrong.*alhpa"):
        config.build_method()
