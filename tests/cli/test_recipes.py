"""Valid recipes and flags: the settings they give, which survive writing and reading."""

from pathlib import Path

import pytest

import lorica
from lorica.recipe.yaml_file import parse_scalar, read_yaml, to_yaml
from lorica.training.config import TrainConfig, read, resolved

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_read(path):
    text = path.read_text()
    assert text.startswith("# ") and len(text.splitlines()) < 40
    config = read(path)
    assert config.build_method().name == config.method["name"]
    assert config.output == f"runs/{path.stem}"


def test_there_are_recipes():
    assert len(RECIPES) >= 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_resolved_reads_back(tmp_path, path):
    config = read(path, {"rank_pattern.layers.0.q_proj": "2", "modules_to_save": "é \u2028\x85: #"})
    again = tmp_path / "config.yaml"
    again.write_text(resolved(config))
    assert read(again) == config
    assert read_yaml(again).data["versions"]["lorica"] == lorica.__version__


def test_defaults():
    config = read(None, {"data": "some/rows.jsonl"})
    assert (config.base, config.epochs, config.max_steps) == ("bundled", 3.0, None)
    assert config.method["name"] == "lora" and config.method["r"] == 8
    assert config.output == "runs/lora-rows"
    assert (config.warmup_steps, config.warmup_ratio) == (0, 0.03)


def test_flags_over_recipe_over_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "data: {path: a.jsonl, limit: 5}\nmethod: {r: 2}\nepochs: 2\nwarmup_ratio: 0.5\n"
        "learning_rate: 1e-3\n"
    )
    config = read(
        path, {"method": "dora", "data.limit": "7", "max-steps": "10", "warmup_steps": "3"}
    )
    assert (config.method["name"], config.method["r"], config.data.limit) == ("dora", 2, 7)
    assert (config.max_steps, config.epochs) == (10, None)
    assert (config.warmup_steps, config.warmup_ratio) == (3, 0.0)
    assert (config.learning_rate, config.data.path) == (1e-3, "a.jsonl")
    assert config.output == "runs/mine"


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("learning_rate", "1e-3", 1e-3),
        ("learning-rate", "1", 1.0),
        ("output", "5", "5"),
        ("base", "true", "true"),
        ("gradient_checkpointing", "true", True),
        ("gradient_checkpointing", "False", False),
        ("target_modules", "q_proj", "q_proj"),
        ("target_modules", "q_proj, v_proj", ["q_proj", "v_proj"]),
        ("target_modules", ["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        ("target_modules", r'".*\\.[qv]{1,2}"', r".*\.[qv]{1,2}"),
        ("layers_to_transform", "3", [3]),
        ("layers_to_transform", "0,1", [0, 1]),
        ("layers_to_transform", "[0, 1]", [0, 1]),
        ("layers_to_transform", "none", None),
        ("modules_to_save", "12", ["12"]),
        ("rank_pattern", '{"q": 4}', {"q": 4}),
        ("alpha_pattern.q", "4", {"q": 4.0}),
        ("rank_pattern.layers.0.q-x", "4", {"layers.0.q-x": 4}),
        ("report_to", "tensorboard,wandb", ["tensorboard", "wandb"]),
        ("seed", 3, 3),
    ],
)
def test_the_text_of_a_flag_gets_the_type_of_its_setting(flag, text, value):
    config = read(None, {"data": "x", flag: text})
    key = flag.replace("-", "_").partition(".")[0]
    assert getattr(config, key) == value


def test_flags_of_data_and_method():
    config = read(
        None,
        {
            "data": '{"path": "a,b.jsonl", "limit": 3}',
            "data.columns.prompt": "question",
            "data.validation": "0.25",
            "data.completion_only": "false",
            "method.alpha": "3",
            "method.use_rslora": "true",
            "method.init": "gaussian",
        },
    )
    assert (config.data.path, config.data.limit) == ("a,b.jsonl", 3)
    assert (config.data.columns, config.data.validation) == ({"prompt": "question"}, 0.25)
    assert not config.data.completion_only
    method = config.build_method()
    assert method == lorica.Lora(alpha=3.0, use_rslora=True, init="gaussian")
    held_out = read(None, {"data": "x", "data.validation": "held.jsonl"})
    assert held_out.data.validation == "held.jsonl"


def test_a_method_from_python():
    config = TrainConfig.model_validate({"data": "x", "method": lorica.Dora(r=3)})
    assert config.build_method() == lorica.Dora(r=3)
    assert read(None, {"data": "x", "method": lorica.Dora(r=3)}).build_method() == lorica.Dora(r=3)


@pytest.mark.parametrize(
    "settings",
    [
        {"trainable_token_indices": [5, 9]},
        {"layers_to_transform": [0, 2]},
        {"target_modules": ["q_proj", "v_proj"]},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 2.0}},
        {"report_to": ["tensorboard"]},
        {"method": {"name": "lora", "r": 4, "init": "pissa"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_python_values_are_not_converted(settings):
    config = read(None, {"data": "rows.jsonl", **settings})
    given = config.model_dump(mode="json")
    for key, value in settings.items():
        assert value == given[key] or value.items() <= given[key].items()


def test_paths_beside_the_recipe(tmp_path, monkeypatch):
    folder = tmp_path / "job"
    (folder / "base").mkdir(parents=True)
    (folder / "rows.jsonl").touch()
    (tmp_path / "here.jsonl").touch()
    (folder / "here.jsonl").touch()
    recipe = folder / "r.yaml"
    recipe.write_text("base: base\ndata: {path: rows.jsonl, validation: here.jsonl}\n")
    monkeypatch.chdir(tmp_path)
    config = read(recipe)
    assert config.base == str(folder / "base")
    assert config.data.path == str(folder / "rows.jsonl")
    assert config.data.validation == "here.jsonl"  # the working directory comes first


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-3", 1e-3),
        ("5", 5),
        ("-0.5", -0.5),
        ("0x10", 16),
        ("no", "no"),
        ("off", "off"),
        ("12:30", "12:30"),
        ("~", None),
        ("true", True),
        ("1_000", "1_000"),
        (".inf", float("inf")),
        ("2024-01-01", "2024-01-01"),
        ("007", 7),
        ("1.", 1.0),
        ("e5", "e5"),
        ("-", "-"),
    ],
)
def test_scalars_follow_yaml_1_2(word, value):
    assert parse_scalar(word) == value and type(parse_scalar(word)) is type(value)


def test_any_text_survives_yaml(tmp_path):
    texts = [
        "",
        " ",
        "no",
        "5",
        "1e5",
        "null",
        "a: b",
        "# c",
        "- x",
        "é\n\ttab",
        "'q'",
        '"',
        "\\",
        "\u2028\u2029\x85\x7f\ufeff",
        "😀",
        "*a",
        "&a",
        "!t",
        "%",
        "@",
        "`",
        "{",
        "[",
        "a b",
        "../x/y-z.jsonl",
        "~",
        "? x",
        "<<",
        "---",
        "\x00\x1b",
    ]
    data = {"plain": dict(zip(map(str, range(99)), texts, strict=False)), "list": texts}
    data["keys"] = dict.fromkeys(texts, 1)
    path = tmp_path / "x.yaml"
    path.write_text(to_yaml(data))
    assert read_yaml(path).data == data
