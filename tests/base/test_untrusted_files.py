"""Files of a base that someone else made: none is followed, waited for, unpickled or believed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorica.base.describe import context_length
from lorica.base.load import load, load_tokenizer
from lorica.base.untrusted_files import check_files, check_size, files_in_index, weight_contents
from lorica.errors import BaseError, FileError, LoricaError
from tests.attack.good import write_base


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "base"
    write_base(folder)
    return folder


@pytest.fixture
def base(good, tmp_path) -> Path:
    shutil.copytree(good, tmp_path / "base")
    return tmp_path / "base"


def index(base: Path, name: object) -> None:
    (base / "model.safetensors").rename(base / "model-1.safetensors")
    (base / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": name}})
    )


NAMES = [
    "pytorch_model.bin",
    "/etc/passwd",
    "/dev/zero",
    "../model.safetensors",
    "a/b.safetensors",
    "..",
    "",
    "model.safetensors\0",
    "x" * 300,
    3,
    None,
    ["model-1.safetensors"],
    {},
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_an_index_names_safetensors_of_the_folder_alone(base, name):
    index(base, name)
    with pytest.raises(FileError, match=r"index\.json"):
        files_in_index(base / "model.safetensors.index.json")
    with pytest.raises(FileError, match=r"index\.json"):
        load(str(base))


@pytest.mark.parametrize("single", [True, False])
def test_a_bad_index_is_refused_beside_a_single_file_too(base, single):
    index(base, "pytorch_model.bin")
    if single:
        (base / "model-1.safetensors").rename(base / "model.safetensors")
    with pytest.raises(FileError, match="no safetensors file"):
        load(str(base))


def test_a_shard_that_is_a_link_elsewhere(base, tmp_path):
    index(base, "model-1.safetensors")
    (base / "model-1.safetensors").rename(tmp_path / "weights.safetensors")
    (base / "model-1.safetensors").symlink_to(tmp_path / "weights.safetensors")
    with pytest.raises(FileError, match="is a link"):
        load(str(base))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "model.safetensors",
        "chat_template.jinja",
        "vocab.txt",
        "model.safetensors.index.json",
    ],
)
@pytest.mark.parametrize("odd", ["pipe", "device", "key", "nothing", "folder"])
def test_what_is_no_regular_file_of_its_kind_is_refused(base, tmp_path, name, odd):
    (base / name).unlink(missing_ok=True)
    if odd == "pipe":
        os.mkfifo(base / name)
    elif odd == "folder":
        (base / name).mkdir()
    else:
        (tmp_path / "id_rsa").write_text("secret")
        targets = {"device": Path("/dev/zero"), "key": tmp_path / "id_rsa", "nothing": Path("none")}
        (base / name).symlink_to(targets[odd])
    with pytest.raises(LoricaError, match=name.replace(".", r"\.")):
        load(str(base))


def test_links_of_the_same_kind_and_of_the_hubs_cache_are_read(good, tmp_path):
    folder = tmp_path / "linked"
    folder.mkdir()
    for file in good.iterdir():
        (folder / file.name).symlink_to(file)
    check_files(folder)
    blobs = tmp_path / "models--a--b/blobs"
    blobs.mkdir(parents=True)
    snapshot = tmp_path / "models--a--b/snapshots/0"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(good.iterdir()):
        shutil.copy(file, blobs / f"{number:064}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:064}")
    assert load(str(snapshot)).path == str(snapshot)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", 10**15),
        ("hidden_size", 2**20),
        ("intermediate_size", 2**40),
        ("vocab_size", 2**31),
        ("head_dim", 2**40),
        ("num_attention_heads", 2**40),
    ],
)
def test_sizes_that_the_weights_do_not_have(base, key, value):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(LoricaError, match=r"config\.json|cannot be loaded"):
        load(str(base))


@pytest.mark.parametrize("value", [64, 4.9, "LlamaForCausalLM", [1], {"x": 1}, True])
def test_architectures_that_are_no_list_of_names(base, value):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": value}))
    with pytest.raises(BaseError, match="architectures"):
        load(str(base))


@pytest.mark.parametrize("number", [10**7 + 1, 2**31, 2**32 - 1])
def test_a_token_with_a_number_beyond_all_reason_is_refused(base, number):
    path = base / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["model"]["vocab"]["!"] = number
    path.write_text(json.dumps(settings))
    with pytest.raises(BaseError, match="number"):
        load_tokenizer(str(base))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8])
@pytest.mark.parametrize("name", ["self_attn.q_proj.weight", "model.norm.weight"])
def test_weights_that_are_no_floats_are_refused(base, dtype, name):
    """transformers casts them without a word: all numbers become whole, or lose a part."""
    path = base / "model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith(name))
    save_file(tensors | {key: tensors[key].to(dtype)}, path, {"format": "pt"})
    with pytest.raises(BaseError, match="not floats") as error:
        load(str(base))
    assert key in str(error.value)


def test_a_model_may_be_larger_than_its_files_within_reason(good):
    held = weight_contents(good)
    assert held.tensors >= 20
    check_size("base", 10**8 + 16 * held.bytes, held)
    with pytest.raises(BaseError, match="describes a model of"):
        check_size("base", 10**8 + 16 * held.bytes + 1, held)


@pytest.mark.parametrize("value", [0, 2**40, True])
def test_a_context_that_is_no_length(base, value):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": value}))
    with pytest.raises(BaseError, match="max_position_embeddings"):
        context_length(str(base))


def test_a_base_that_fails_when_it_runs_is_refused(base):
    """`attention_dropout: null` loads, and fails in the first training step."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"attention_dropout": None}))
    with pytest.raises(BaseError, match="cannot be loaded"):
        load(str(base))


@pytest.mark.parametrize("value", ["", 1e300, ["x"], 2**40, {}, True])
def test_special_tokens_that_are_no_ids(base, value):
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": value}))
    with pytest.raises(BaseError, match=r"eos_token_id|cannot be loaded"):
        load(str(base))


def test_a_tokenizer_that_does_not_know_every_text(base):
    """WordLevel without an unknown word raises at the first one, in the middle of the rows."""
    raw = json.loads((base / "tokenizer.json").read_text())
    raw["model"] = {
        "type": "WordLevel",
        "vocab": {"a": 0, "<s>": 256, "</s>": 257, "<pad>": 258},
        "unk_token": "none",
    }
    (base / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(BaseError, match="cannot be loaded"):
        load_tokenizer(str(base))


def test_trying_a_base_takes_nothing_from_the_generator(base):
    import torch

    torch.manual_seed(3)
    load(str(base))
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
