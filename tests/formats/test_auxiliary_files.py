"""What stands beside the weights goes with a merged model, byte for byte."""

from lorica.formats.auxiliary_files import copy_auxiliary_files

EMPTY = "\x02" + "\0" * 7 + "{}"  # a safetensors file without tensors


def folder(path, **files):
    path.mkdir()
    for name, text in files.items():
        file = path / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return path


def contents(path):
    return {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file()}


BASE = {
    "config_DOT_json": "{}",
    "model_DOT_safetensors": EMPTY,
    "pytorch_model_DOT_bin": "",
    "tokenizer_DOT_json": "{}",
    "tokenizer_config_DOT_json": "{}",
    "tokenizer_DOT_model": "m",
    "preprocessor_config_DOT_json": "{}",
    "additional_chat_templates__tools_DOT_jinja": "x",
    "chat_template_DOT_jinja": "j",
    "LICENSE": "l",
    "README_DOT_md": "r",
    "notes_DOT_py": "n",
}
CARRIED = {
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "preprocessor_config.json",
    "additional_chat_templates/tools.jinja",
    "chat_template.jinja",
    "LICENSE",
}


def test_files_of_the_base_are_carried_and_nothing_else(tmp_path):
    base, adapter = folder(tmp_path / "b", **BASE), folder(tmp_path / "a")
    out = folder(tmp_path / "out", config_DOT_json="new", LICENSE="ours")
    assert set(copy_auxiliary_files(str(base), adapter, out)) == CARRIED - {"LICENSE"}
    got = contents(out)
    assert got.keys() == CARRIED | {"config.json"}
    assert got["LICENSE"] == "ours" and got["config.json"] == "new"
    assert got["additional_chat_templates/tools.jinja"] == "x"


def test_a_tokenizer_of_the_adapter_replaces_the_whole_of_the_base_s(tmp_path):
    base = folder(tmp_path / "b", **BASE)
    adapter = folder(tmp_path / "a", tokenizer_DOT_json='{"own": 1}', adapter_config_DOT_json="{}")
    out = folder(tmp_path / "out")
    copy_auxiliary_files(str(base), adapter, out)
    got = contents(out)
    assert got["tokenizer.json"] == '{"own": 1}'
    assert "tokenizer.model" not in got and "tokenizer_config.json" not in got
    assert got["chat_template.jinja"] == "j" and got["preprocessor_config.json"] == "{}"
    assert "adapter_config.json" not in got


def test_links_of_a_hub_cache_are_followed_and_those_of_an_adapter_are_not_files(tmp_path):
    (tmp_path / "models--owner--name").mkdir()
    blobs = folder(tmp_path / "models--owner--name/blobs", one="{}")
    base, adapter = folder(tmp_path / "b"), folder(tmp_path / "a")
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_text(EMPTY)
    (base / "tokenizer.json").symlink_to(blobs / "one")
    out = folder(tmp_path / "out")
    copy_auxiliary_files(str(base), adapter, out)
    assert contents(out) == {"tokenizer.json": "{}"}
    assert not (out / "tokenizer.json").is_symlink()
