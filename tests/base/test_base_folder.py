"""What is wrong with a base folder is named as it is, before or while libraries read it."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from lorica.base import hub
from lorica.base.bundled import FOLDER
from lorica.base.describe import locate
from lorica.base.load import load, load_tokenizer
from lorica.errors import BaseError, FileError, LoricaError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The bundled base, its files linked, so that a test can replace some."""
    folder = tmp_path / "base"
    folder.mkdir()
    for file in FOLDER.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def rewrite(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    file.write_text(text)


def edit(file: Path, **values: object) -> None:
    rewrite(file, json.dumps({**json.loads(file.read_text()), **values}))


def only_tokenizer(folder: Path, name: str) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / name).write_text("{}")


def shard(folder: Path) -> None:
    lost = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": lost}}))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def newer_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    model = json.loads(file.read_text())["model"] | {"type": "BPE3"}
    edit(file, model=model)


def swap_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "params.json").write_text("{}")


BROKEN: dict[str, tuple[Callable[[Path], object], type[LoricaError], str]] = {
    "a shard is lost": (shard, FileError, "model-00002-of-00002"),
    "weights are a pointer": (
        lambda b: rewrite(b / "model.safetensors", POINTER),
        FileError,
        "lfs pull",
    ),
    "the tokenizer is a pointer": (
        lambda b: rewrite(b / "tokenizer.json", POINTER),
        FileError,
        "lfs pull",
    ),
    "the config is a pointer": (
        lambda b: rewrite(b / "config.json", POINTER),
        FileError,
        "lfs pull",
    ),
    "pickles alone": (pickled, FileError, "pickles are not read"),
    "no weights": (lambda b: (b / "model.safetensors").unlink(), FileError, "no weights"),
    "authors' format": (swap_config, BaseError, "transformers' format"),
    "tekken alone": (lambda b: only_tokenizer(b, "tekken.json"), BaseError, "tekken.json"),
    "no tokenizer": (lambda b: only_tokenizer(b, "readme"), BaseError, "no tokenizer"),
    "a newer tokenizer.json": (newer_tokenizer, BaseError, "pip install -U tokenizers"),
    "a config value of another type": (
        lambda b: edit(b / "config.json", num_hidden_layers="6"),
        BaseError,
        "num_hidden_layers",
    ),
    "config values that contradict": (
        lambda b: edit(b / "config.json", num_attention_heads=5),
        BaseError,
        "attention heads",
    ),
    "an unknown architecture": (
        lambda b: edit(b / "config.json", model_type="llama9"),
        BaseError,
        "-U transformers",
    ),
    "packed by a library that is not here": (
        lambda b: edit(
            b / "config.json",
            quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128},
        ),
        BaseError,
        "float checkpoint",
    ),
    "an adapter beside the base": (
        lambda b: (b / "adapter_config.json").write_text("{}"),
        BaseError,
        "move adapter_config",
    ),
    "an index that is none": (
        lambda b: (b / "model.safetensors.index.json").write_text("[]"),
        FileError,
        "index.json",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_named_with_its_fix(base, name):
    spoil, kind, words = BROKEN[name]
    spoil(base)
    with pytest.raises(LoricaError) as caught:
        load_tokenizer(str(base))
        load(str(base))
    assert type(caught.value) is kind
    assert words in str(caught.value) and "fix" in str(caught.value)


def test_sentencepiece_alone_names_its_package(base, monkeypatch):
    only_tokenizer(base, "tokenizer.model")
    monkeypatch.setattr("lorica.base.folder._sentencepiece", lambda: False)
    with pytest.raises(BaseError, match="pip install sentencepiece"):
        locate(str(base))


def test_a_path_that_is_no_folder_is_named(tmp_path, base):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" + struct.pack("<I", 3))
    for path, words in [
        (tmp_path / "bse", "closest  base"),
        (tmp_path / "a" / "b", "does not exist either"),
        (gguf, "llama.cpp"),
        (base / "config.json", "is a file"),
        (tmp_path, "name one of the folders in it"),
    ]:
        with pytest.raises(BaseError, match=words):
            locate(str(path))


def test_an_encoder_decoder_is_no_language_model(tmp_path, base):
    from transformers import BartConfig, T5Config

    for config in (
        T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=32),
        BartConfig(d_model=8, encoder_layers=1, decoder_layers=1, vocab_size=32),
    ):
        rewrite(base / "config.json", json.dumps(config.to_dict() | {"architectures": None}))
        with pytest.raises(BaseError, match="encoder-decoder"):
            load(str(base))


def test_an_adapter_folder_is_not_a_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/model"}')
    with pytest.raises(BaseError, match="--base owner/model"):
        locate(str(tmp_path))


class Session:
    """Stands for the hub: counts requests, and answers or not."""

    def __init__(self, answers: bool):
        self.answers, self.asked = answers, 0

    def head(self, url: str, timeout: float) -> None:
        self.asked += 1
        if not self.answers:
            raise ConnectionError("no route to the hub")


@pytest.fixture
def ask(monkeypatch):
    def with_session(session: Session) -> Session:
        hub.reachable_or_cached.cache_clear()
        monkeypatch.setattr("huggingface_hub.get_session", lambda: session)
        return session

    yield with_session
    hub.reachable_or_cached.cache_clear()


def test_a_hub_that_does_not_answer_is_asked_once(ask):
    session = ask(Session(answers=False))
    with pytest.raises(BaseError, match="hub cannot be reached"):
        locate("owner/model")
    assert session.asked == 1


def test_a_base_in_the_cache_serves_without_the_hub(ask, monkeypatch):
    ask(Session(answers=False))
    found = str(FOLDER / "config.json")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: found)
    assert locate("owner/model") == str(FOLDER)


def test_a_hub_that_answers_is_left_to_transformers(ask):
    session = ask(Session(answers=True))
    assert [locate("owner/model"), locate("owner/model")] == ["owner/model"] * 2
    assert session.asked == 1


def test_what_is_no_model_id_is_named(ask):
    ask(Session(answers=True))
    with pytest.raises(BaseError, match="neither a folder here nor a model id"):
        locate("own er/mo del")
