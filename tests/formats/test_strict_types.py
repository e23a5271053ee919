"""Values of adapter folders are of the type that their writers give them, or are refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import lorica
from lorica.errors import ConfigError, FileError, LoricaError, TargetError
from lorica.formats import commit
from tests.laws.bases import CASES, Stack, trained
from tests.marks import slow_but


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    lorica.save(trained("lora", CASES[0], seed=1), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "adapter")


def rewrite(folder, name, **changes):
    file = folder / name
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, **changes}))
    manifest = folder / "manifest.json"
    if manifest.exists():
        note = json.loads(manifest.read_text())
        note["files"] = {n: commit.digest(folder / n) for n in note["files"]}
        manifest.write_text(json.dumps(note))


WRONG = [
    {"use_rslora": "false"},
    {"use_rslora": 1},
    {"use_rslora": None},
    {"use_dora": "no"},
    {"lora_bias": []},
    {"fan_in_fan_out": "true"},
    {"lora_alpha": "64"},
    {"lora_alpha": True},
    {"lora_alpha": 1e300},
    {"lora_alpha": None},
    {"lora_alpha": [8]},
    {"r": 4.9},
    {"r": "4"},
    {"r": True},
    {"r": None},
    {"r": 0},
    {"r": 10**29},
    {"r": -1},
    {"lora_dropout": "0.1"},
    {"lora_dropout": 1.5},
    {"target_modules": 3},
    {"target_modules": [1]},
    {"target_modules": {}},
    {"modules_to_save": "head", "exclude_modules": 1},
    {"layers_to_transform": "0"},
    {"layers_to_transform": [0.5]},
    {"rank_pattern": []},
    {"rank_pattern": {"x": "4"}},
    {"alpha_pattern": {"x": "4"}},
    {"alpha_pattern": {"x": None}},
    {"peft_type": ["LORA"]},
    {"init_lora_weights": 3},
    {"trainable_token_indices": ["1"]},
    {"unheard_of": 1},
    {"layer_replication": [[0, 1]]},
]


@pytest.mark.parametrize("ours", [True, False], ids=["manifest", "peft"])
@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_a_value_of_another_type_is_refused_by_name(folder, changes, ours):
    if not ours:
        (folder / "manifest.json").unlink()
    rewrite(folder, "adapter_config.json", **changes)
    with pytest.raises(FileError, match=list(changes)[-1]):
        lorica.load(Stack(), folder)


CONTRADICTIONS = [
    {"lora_alpha": 3},
    {"r": 5},
    {"use_rslora": True},
    {"use_dora": True},
    {"target_modules": ["up"]},
    {"rank_pattern": {"up": 3}},
    {"lora_dropout": 0.5},
]


@pytest.mark.parametrize("changes", CONTRADICTIONS, ids=str)
def test_files_that_contradict_each_other(folder, changes):
    rewrite(folder, "adapter_config.json", **changes)
    with pytest.raises(FileError, match=rf"contradict each other(.|\n)*{next(iter(changes))}"):
        lorica.load(Stack(), folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": "1"},
        {"seed": 1.5},
        {"seed": -1},
        {"seed": 2**70},
        {"labels": "ab"},
        {"labels": [1]},
        {"method": {"name": "lora", "r": "4"}},
        {"method": {"name": "lora", "r": 4.5}},
        {"method": {"name": "lora", "use_rslora": "false"}},
        {"method": {"name": None}},
        {"method": {"name": {}}},
        {"method": {"name": "lora", "unheard_of": 1}},
        {"method": {}},
        {"targets": {"target_modules": 1}},
        {"targets": {"unheard_of": 1}},
        {"base": {}},
        {"files": {"adapter_model.safetensors": {"bytes": "1", "sha256": "x"}}},
        {"files": {"/dev/zero": {"bytes": 1, "sha256": "x"}}},
        {"files": []},
        {"format": True},
        {"format": "1"},
        {"versions": []},
    ],
    ids=str,
)
def test_a_manifest_of_another_form(folder, changes):
    file = folder / "manifest.json"
    document = json.loads(file.read_text())
    for key, value in changes.items():
        if key == "files" and isinstance(value, dict) and "/dev/zero" in value:
            value = {**document["files"], **value}
        document[key] = value
    file.write_text(json.dumps(document))
    with pytest.raises(FileError):
        lorica.load(Stack(), folder)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
def test_tensors_are_floats(folder, dtype):
    (folder / "manifest.json").unlink()
    weights = folder / "adapter_model.safetensors"
    save_file({k: t.to(dtype) for k, t in load_file(weights).items()}, weights)
    with pytest.raises(FileError, match="not of floats"):
        lorica.load(Stack(), folder)


SLOW = ["(a+)+$", "(.*)*x", "((.*a)*b)*c", "(up|u|p|.*)*!", "(.*.*.*.*.*.*.*.*)*z"]


@pytest.mark.parametrize("pattern", slow_but(["(a+)+$"], SLOW))
@pytest.mark.parametrize("key", ["target_modules", "rank_pattern"])
def test_a_pattern_that_backtracks_for_ever(monkeypatch, pattern, key):
    from lorica.core import patterns

    monkeypatch.setattr(patterns, "SECONDS", 0.5)
    names = ["a" * 40 + "b", "up" * 30]
    with pytest.raises(TargetError, match=rf"{key}(.|\n)*takes more than"):
        patterns.check_pattern(key, pattern, names)


@pytest.mark.parametrize(
    "pattern", ["a{99999999999}", "(" * 5000, "[", "*", "(?P<n>a)(?P<n>b)", "a" * 300_000]
)
def test_a_pattern_that_is_none(pattern):
    with pytest.raises(TargetError):
        lorica.adapt(Stack(), lorica.Lora(r=2), target_modules=pattern + "|x")


def test_patterns_that_are_in_use(monkeypatch):
    from lorica.core.patterns import check_pattern

    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(400)]
    for pattern in (
        r".*\.(q|v)_proj",
        r"(?:.*?(?:text).*?(?:attn|mlp).*?(?:q_proj).*?)|(?:x)",
        r"model\.layers\.\d+\.(self_attn)\.(q_proj|k_proj)$",
    ):
        check_pattern("target_modules", pattern, names)


@pytest.mark.parametrize(
    "settings", [{"r": 10**29}, {"r": 10**6}, {"r": 2, "alpha": 1e300}], ids=str
)
def test_sizes_that_no_layer_has(settings):
    with pytest.raises(ConfigError):
        lorica.adapt(Stack(), lorica.Lora(**settings))
    with pytest.raises(LoricaError):
        lorica.adapt(Stack(), lorica.Lora(r=2), rank_pattern={".*": settings["r"] * 10**6})


@pytest.mark.parametrize(
    "base",
    [
        "x",
        1e300,
        [],
        None,
        {"path": 1},
        {"path": "b", "quantisation": []},
        {"path": "b", "double_quantisation": "no"},
    ],
    ids=str,
)
def test_commands_read_no_base_of_another_form(folder, base):
    """They look at the manifest before there is a model to load into."""
    from lorica.formats.open_adapter import open_adapter

    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**document, "base": base}))
    with pytest.raises(FileError, match=r"manifest\.json"):
        open_adapter(folder)


@pytest.mark.parametrize("changes", [{"base_model_name_or_path": 1}, {"task_type": []}], ids=str)
def test_commands_read_no_config_of_another_form(folder, changes):
    from lorica.formats.open_adapter import open_adapter

    (folder / "manifest.json").unlink()
    rewrite(folder, "adapter_config.json", **changes)
    with pytest.raises(FileError, match=next(iter(changes))):
        open_adapter(folder)


@pytest.mark.parametrize(
    "files",
    [
        [],
        {"/dev/zero": {}},
        {"../x": {"sha256": ""}},
        {"a": 1},
    ],
    ids=str,
)
def test_info_opens_no_file_elsewhere(folder, files):
    from lorica.cli.info import describe

    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**document, "files": files}))
    with pytest.raises(FileError, match=r"manifest\.json"):
        describe(str(folder))
