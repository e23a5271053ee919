"""Check a local base folder before any library reads it, so that errors name the actual problem.

transformers reports many of these as something else: a missing shard as pickled weights, a Git LFS
pointer as broken JSON, a SentencePiece file as a missing package. It even attaches an adapter that
was left in the folder to the base, silently.
"""

from pathlib import Path

from lorica import plain_files, strict_json
from lorica.base.untrusted_files import INDEX, check_files, files_in_index
from lorica.errors import BaseError, FileError, closest, listed

ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
POINTER = b"version https://git-lfs"
"""The first bytes of a Git LFS pointer: a text of three lines in the place of a file."""
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5"}
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
"""Files from which a tokenizer is read without a further package."""


def check_folder(folder: Path) -> None:
    """Check that `folder` is whole and holds one model, as far as its file names tell.

    Raises: BaseError if it is not a base that can be trained on; FileError if a part of it is
        missing or is a Git LFS pointer.
    """
    if not folder.exists():
        raise _missing(folder)
    if not folder.is_dir():
        raise _not_a_folder(folder)
    if plain_files.is_unfinished(folder.resolve()):
        raise FileError(
            f"{folder} is unfinished: the process that wrote it was ended, or still runs.",
            fix="remove it, and run the command again",
        )
    names = sorted(p.name for p in folder.iterdir())
    if "config.json" not in names:
        raise _no_config(folder, names)
    _check_pointers(folder)
    _check_leftovers(folder, names)
    _check_weights(folder, names)
    _check_tokenizer(folder, names)
    check_files(folder)


def _missing(folder: Path) -> BaseError:
    parent = folder.parent
    if not parent.is_dir():
        return BaseError(
            f"there is no folder {folder}.",
            why=f"{parent} does not exist either",
            fix="check the path",
        )
    near = closest(folder.name, (p.name for p in parent.iterdir() if p.is_dir()))
    return BaseError(f"there is no folder {folder}.", closest=near, fix="check the path")


def _not_a_folder(path: Path) -> BaseError:
    if path.suffix == ".gguf":
        return BaseError(
            f"{path} is a GGUF file, which is for llama.cpp.",
            fix="name the folder of the transformers model that it was converted from",
        )
    return BaseError(f"{path} is a file.", fix=f"name the model's folder, e.g. {path.parent}")


def _no_config(folder: Path, names: list[str]) -> BaseError:
    fix = "name the folder of a transformers model"
    what = f"{folder} has no config.json, so it is not a model folder."
    if "adapter_config.json" in names:
        base = strict_json.read(folder / "adapter_config.json", finite=False, follow=True).get(
            "base_model_name_or_path"
        )
        what = f"{folder} is an adapter, not a base."
        fix = f"pass --base {base}" if base else "name the base that it was trained on"
    elif "params.json" in names or "consolidated.safetensors" in names:
        fix = "this is the authors' own format; name the copy in transformers' format"
    elif inside := [name for name in names if (folder / name / "config.json").is_file()]:
        fix = f"name one of the folders in it: {listed(folder / name for name in inside)}"
    elif any(name.endswith(".gguf") for name in names):
        fix = "GGUF files are for llama.cpp; name the model folder that they were converted from"
    return BaseError(what, holds=listed(names, 8), fix=fix)


def _check_pointers(folder: Path) -> None:
    pointers = [p.name for p in sorted(folder.iterdir()) if p.is_file() and _is_pointer(p)]
    if pointers:
        raise FileError(
            f"{len(pointers)} files of {folder} are Git LFS pointers, not the files themselves.",
            files=listed(pointers),
            fix=f"git -C {folder} lfs pull, or download these files",
        )


def _is_pointer(path: Path) -> bool:
    if path.stat().st_size > 1024:
        return False
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def _check_leftovers(folder: Path, names: list[str]) -> None:
    files = [name for name in ADAPTER if name in names]
    if files:
        raise BaseError(
            f"{folder} holds an adapter beside the base: {listed(files)}.",
            why="transformers would attach it, and a new adapter would be trained on top of it",
            fix=f"move {' and '.join(files)} out of {folder}; to use that adapter, name its own "
            "folder",
        )


def _check_weights(folder: Path, names: list[str]) -> None:
    shards = set(files_in_index(folder / INDEX)) if INDEX in names else set()
    lost = sorted(shards - set(names))
    if lost:
        raise FileError(
            f"{folder} lacks {len(lost)} of the {len(shards)} files of its weights.",
            missing=listed(lost),
            listed_in=INDEX,
            fix="download these files",
        )
    if any(name.endswith(".safetensors") for name in names):
        return
    pickles = [name for name in names if Path(name).suffix in PICKLES]
    if pickles:
        raise FileError(
            f"{folder} has no safetensors weights, and pickles are not read.",
            holds=listed(pickles),
            fix="convert the model to safetensors where running its code is safe: "
            "model.save_pretrained(folder)",
        )
    raise FileError(
        f"{folder} has no weights: no .safetensors file is in it.",
        holds=listed(names, 8),
        fix="download the model's .safetensors files",
    )


def _check_tokenizer(folder: Path, names: list[str]) -> None:
    if any(name in names for name in TOKENIZERS):
        return
    fix = "download the model's tokenizer.json"
    if "tekken.json" in names:
        raise BaseError(
            f"{folder} has a tokenizer in Mistral's own format alone, tekken.json.",
            fix="add the tokenizer.json of the same model in transformers' format",
        )
    models = [name for name in names if name.endswith(".model")]
    if models and not _sentencepiece():
        raise BaseError(
            f"{folder} has a SentencePiece tokenizer alone, {listed(models)}.",
            fix=f"{fix}, or pip install sentencepiece, which reads {models[0]}",
        )
    if not models and not any("vocab" in name or "tokenizer" in name for name in names):
        raise BaseError(f"{folder} has no tokenizer.", holds=listed(names, 8), fix=fix)


def _sentencepiece() -> bool:
    from importlib.util import find_spec

    return find_spec("sentencepiece") is not None
