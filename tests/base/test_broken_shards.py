"""A base in several files of which one is missing, short, or not what the index says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lorica.base.load import load
from lorica.cli.describe import describe
from lorica.errors import FileError
from lorica.plan.shapes import read_shapes
from tests import small_base

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    small_base.model().save_pretrained(folder, max_shard_size="40KB")
    small_base.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "base"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def a_shard_is_missing(folder: Path) -> None:
    shards(folder)[1].unlink()


def a_shard_is_cut_short(folder: Path) -> None:
    file = shards(folder)[1]
    file.write_bytes(file.read_bytes()[:-1000])


def a_shard_is_cut_in_its_header(folder: Path) -> None:
    file = shards(folder)[1]
    file.write_bytes(file.read_bytes()[:100])


def a_shard_is_empty(folder: Path) -> None:
    shards(folder)[1].write_bytes(b"")


def a_shard_has_bytes_behind_its_tensors(folder: Path) -> None:
    with shards(folder)[1].open("ab") as file:
        file.write(bytes(1000))


def a_shard_is_of_another_model(folder: Path) -> None:
    file = shards(folder)[1]
    tensors = load_file(file)
    save_file({f"other.{key}": value for key, value in tensors.items()}, file, {"format": "pt"})


def two_shards_are_exchanged(folder: Path) -> None:
    first, second = shards(folder)[:2]
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)


def the_index_names_a_tensor_that_no_file_has(folder: Path) -> None:
    change_index(folder, lambda places: places.update({"no.such": shards(folder)[0].name}))


def the_index_names_the_wrong_file(folder: Path) -> None:
    def move(places: dict[str, str]) -> None:
        key = next(iter(places))
        places[key] = next(name for name in places.values() if name != places[key])

    change_index(folder, move)


def the_index_names_a_file_that_is_not_there(folder: Path) -> None:
    change_index(folder, lambda places: places.update({"no.such": "none.safetensors"}))


def the_index_is_cut_short(folder: Path) -> None:
    file = folder / INDEX
    file.write_text(file.read_text()[:-100])


def the_index_has_no_map(folder: Path) -> None:
    (folder / INDEX).write_text("{}")


def a_tensor_is_in_neither(folder: Path) -> None:
    key = "model.layers.1.mlp.up_proj.weight"
    file = folder / json.loads((folder / INDEX).read_text())["weight_map"][key]
    tensors = load_file(file)
    del tensors[key]
    save_file(tensors, file, {"format": "pt"})
    change_index(folder, lambda places: places.pop(key))


def a_tensor_is_in_two_shards(folder: Path) -> None:
    first, second = (load_file(file) for file in shards(folder)[:2])
    key = next(iter(first))
    save_file(second | {key: 2 * first[key]}, shards(folder)[1], metadata={"format": "pt"})


def the_index_has_an_empty_map(folder: Path) -> None:
    change_index(folder, lambda places: places.clear())


def there_is_no_index(folder: Path) -> None:
    (folder / INDEX).unlink()


BROKEN = {
    a_shard_is_missing: "lacks 1 of the",
    a_shard_is_cut_short: "is damaged",
    a_shard_is_cut_in_its_header: "is damaged",
    a_shard_is_empty: "is damaged",
    a_shard_has_bytes_behind_its_tensors: "is damaged",
    a_shard_is_of_another_model: "not where it says",
    two_shards_are_exchanged: "not where it says",
    the_index_names_a_tensor_that_no_file_has: "no.such",
    the_index_names_the_wrong_file: "not where it says",
    the_index_names_a_file_that_is_not_there: "none.safetensors",
    the_index_is_cut_short: INDEX,
    the_index_has_no_map: "weight_map",
    a_tensor_is_in_neither: "up_proj",
    a_tensor_is_in_two_shards: "in more than one of its files",
    the_index_has_an_empty_map: "weight_map",
    there_is_no_index: f"there is no {INDEX}",
}


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("options", [{}, {"dtype": "auto", "offload": "disk"}], ids=str)
def test_a_broken_base_in_shards_is_refused_by_name(spoil, options, folder):
    assert len(shards(folder)) > 2
    spoil(folder)
    with pytest.raises(FileError, match=BROKEN[spoil]) as error:
        load(str(folder), **options)
    assert str(folder) in str(error.value)
    assert error.value.fix


IN_ITS_FILES = [spoil for spoil in BROKEN if spoil is not a_tensor_is_in_neither]
"""Faults that the files show; the other one needs the architecture."""


@pytest.mark.parametrize("spoil", IN_ITS_FILES, ids=lambda spoil: spoil.__name__)
def test_plan_refuses_it_too_and_info_says_so(spoil, folder):
    spoil(folder)
    with pytest.raises(FileError, match=BROKEN[spoil]):
        read_shapes(str(folder))
    assert describe(str(folder))["files"].startswith("not usable: ")


@pytest.mark.parametrize("options", [{}, {"quantisation": "nf4"}], ids=str)
def test_matrices_of_zeros_are_named(options, folder):
    """A download that broke off in a file which was made at full length leaves zeros."""
    assert not [line for line in load(str(folder), **options).notices if "zeros" in line]
    shard = sorted(shards(folder))[1]
    head = 8 + int.from_bytes(shard.read_bytes()[:8], "little")
    with shard.open("r+b") as file:
        file.seek(head)
        file.write(bytes(shard.stat().st_size - head))
    matrices = [name for name, tensor in load_file(shard).items() if tensor.ndim > 1]
    (line,) = [line for line in load(str(folder), **options).notices if "zeros" in line]
    assert line.startswith(f"{len(matrices)} of the ")
    assert any(name in line for name in matrices)


@pytest.mark.parametrize("options", [{}, {"dtype": "auto", "offload": "disk"}], ids=str)
def test_a_whole_base_in_shards_that_cannot_be_written_is_read(folder, options):
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    try:
        load(str(folder), **options)
    finally:
        folder.chmod(0o755)
