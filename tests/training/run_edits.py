"""Edits of an interrupted run and of what it stands on: settings, base, rows, checkpoint."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lorica.training import checkpoint as ckpt

Edit = Callable[[Path], None]


@dataclass(frozen=True)
class Change:
    """names: a pattern that the refusal must hold; None: the run ends with the same bytes."""

    edit: Edit
    names: str | None


def setting(key: str, text: str) -> Edit:
    """Another value of a setting in the run's config.yaml; nested ones with dots."""

    def edit(root: Path) -> None:
        file = root / "run" / "config.yaml"
        *parents, leaf = key.split(".")
        start = 0
        whole = file.read_text()
        for parent in parents:
            start = re.search(rf"^{parent}:", whole, re.M).end()  # type: ignore[union-attr]
        head, tail = whole[:start], whole[start:]
        indent = "  " * len(parents)
        new, count = re.subn(
            rf"^{indent}{leaf}:.*$", f"{indent}{leaf}: {text}", tail, count=1, flags=re.M
        )
        assert count == 1 and new != tail, f"{key} is not in config.yaml, or not another one"
        file.write_text(head + new)

    return edit


def of_json(path: str, edit_value: Callable[[Any], Any]) -> Edit:
    def edit(root: Path) -> None:
        (file,) = root.glob(path)
        value = json.loads(file.read_text())
        edit_value(value)
        file.write_text(json.dumps(value))

    return edit


def config(**fields: Any) -> Edit:
    return of_json("base/config.json", lambda value: value.update(fields))


def tokenizer(edit_value: Callable[[Any], Any]) -> Edit:
    return of_json("base/tokenizer.json", edit_value)


def state(*keys: str, value: Any) -> Edit:
    def set_value(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return of_json("run/checkpoints/step-00000004/state.json", set_value)


def weights(edit_tensors: Callable[[dict[str, torch.Tensor]], Any], file: str = "base") -> Edit:
    def edit(root: Path) -> None:
        (path,) = root.glob(f"{file}/model.safetensors" if file == "base" else file)
        tensors = load_file(path)
        edit_tensors(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return edit


def of_checkpoint(**changes: Callable[[Any], Any]) -> Edit:
    """The newest checkpoint written again, with other contents and digests that fit them."""

    def edit(root: Path) -> None:
        checkpoint = ckpt.load_newest(root / "run" / "checkpoints")
        assert checkpoint is not None
        new = {key: change(getattr(checkpoint, key)) for key, change in changes.items()}
        ckpt.save(root / "run" / "checkpoints", replace(checkpoint, **new), keep=9)

    return edit


def moments(change: Callable[[torch.Tensor], torch.Tensor | None], word: str) -> Edit:
    def edit(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        key = sorted(k for k in state if k.endswith(word))[3]
        new = change(state[key])
        return {k: t for k, t in state.items() if k != key} | ({} if new is None else {key: new})

    return of_checkpoint(optimizer=edit)


def nothing(root: Path) -> None:
    pass


def swap_ids(tokenizer: dict) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def zero_where_no_hash_looks(tensors: dict[str, torch.Tensor]) -> None:
    from lorica.base.samples import places

    for tensor in tensors.values():
        flat, hashed = tensor.view(-1), places(tensor.numel())
        values = flat[hashed].clone()
        flat.zero_()
        flat[hashed] = values


def one_bit(name: str) -> Edit:
    return weights(lambda tensors: tensors[name].view(torch.int32).view(-1)[7].bitwise_xor_(1))


def append(path: str, text: str) -> Edit:
    return lambda root: (root / path).write_text((root / path).read_text() + text) and None


def move_data(root: Path) -> None:
    (root / "elsewhere").mkdir()
    shutil.move(root / "rows.jsonl", root / "elsewhere" / "others.jsonl")
    setting("data.path", str(root / "elsewhere" / "others.jsonl"))(root)


def move_base(root: Path) -> None:
    shutil.move(root / "base", root / "moved.v2")
    setting("base", str(root / "moved.v2"))(root)


def rename_data(root: Path) -> None:
    shutil.move(root / "rows.jsonl", root / "rows.txt")
    setting("data.path", str(root / "rows.txt"))(root)


def rows(change: Callable[[list[str]], list[str]]) -> Edit:
    def edit(root: Path) -> None:
        file = root / "rows.jsonl"
        file.write_text("".join(change(file.read_text().splitlines(keepends=True))))

    return edit


def files(act: Callable[[Path], Any]) -> Edit:
    return lambda root: act(root / "run" / "checkpoints" / "step-00000004")


def edited_copy(cut: Path, to: Path, edit: Edit) -> Path:
    """Copy the folder `cut` of base, rows and run, and edit it. Returns: the run folder."""
    shutil.copytree(cut, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("whole"))
    file = to / "run" / "config.yaml"
    file.write_text(file.read_text().replace(str(cut), str(to)))
    edit(to)
    return to / "run"
