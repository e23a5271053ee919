"""What is done to a good base, good rows or a good run before a command meets them.

Every function changes the working directory, where these lie (see `inputs` in the test):

    base/       a copy of `story_base`         rows.jsonl   24 prompt/completion rows
    run/        a finished run of six steps    stopped/     the same, ended by a kill at step 4
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorica.data import template_worker
from lorica.formats import commit

Patch = pytest.MonkeyPatch
Prepare = Callable[[Patch, Path], Any]
"""(patch, the folder of a base of other shapes) -> anything."""

ADAPTER = Path("run/adapter")
WEIGHTS = ADAPTER / "adapter_model.safetensors"
QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def nothing(patch: Patch, other: Path) -> None:
    """The command line itself is what is wrong."""


def write(name: str, content: str | bytes | list[dict[str, Any]]) -> Prepare:
    """A file: text, bytes, or rows as JSON Lines."""

    def prepare(patch: Patch, other: Path) -> None:
        text = content
        if isinstance(text, list):
            text = "".join(json.dumps(row) + "\n" for row in text)
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return prepare


def cut(name: str | Path, length: int) -> Prepare:
    """The first `length` bytes of a file; all but the last -length for a negative one."""
    return lambda patch, other: Path(name).write_bytes(Path(name).read_bytes()[:length])


def remove(*names: str | Path) -> Prepare:
    def prepare(patch: Patch, other: Path) -> None:
        for name in names:
            shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()

    return prepare


def both(*parts: Prepare) -> Prepare:
    return lambda patch, other: [part(patch, other) for part in parts]


def edit(name: str | Path, change: Callable[[dict[str, Any]], object]) -> Prepare:
    """Change a JSON file in place."""

    def prepare(patch: Patch, other: Path) -> None:
        note = json.loads(Path(name).read_text())
        change(note)
        Path(name).write_text(json.dumps(note))

    return prepare


def tensors(change: Callable[[dict[str, Tensor]], object], file: str | Path = WEIGHTS) -> Prepare:
    """Change tensors of a file in place, and bring a manifest's digests up to date."""

    def prepare(patch: Patch, other: Path) -> None:
        state = {key: tensor.clone() for key, tensor in load_file(file).items()}
        change(state)
        save_file(state, file, metadata={"format": "pt"})
        manifest = Path(file).with_name("manifest.json")
        if manifest.is_file():
            note = json.loads(manifest.read_text())
            note["files"] = {n: commit.digest(manifest.with_name(n)) for n in note["files"]}
            manifest.write_text(json.dumps(note))

    return prepare


def of_peft(prepare: Prepare) -> Prepare:
    """The same with the folder that PEFT would have written: without our manifest."""
    return both(remove(ADAPTER / "manifest.json"), prepare)


def perturbed(patch: Patch, other: Path) -> None:
    """other/: a base of the same shapes with slightly other weights."""
    shutil.copytree("base", "other")
    tensors(lambda s: [t.mul_(1.01) for t in s.values() if t.ndim == 2], "other/model.safetensors")(
        patch, other
    )


def of_other_shapes(patch: Patch, other: Path) -> None:
    """other/: a base of other shapes."""
    Path("other").symlink_to(other)


def flipped(patch: Patch, other: Path) -> None:
    data = bytearray(WEIGHTS.read_bytes())
    data[-9] ^= 4
    WEIGHTS.write_bytes(bytes(data))


def no_weights_but_a_pickle(patch: Patch, other: Path) -> None:
    Path("base/model.safetensors").rename("base/pytorch_model.bin")


def does_nothing(state: dict[str, Tensor]) -> None:
    for key in state:
        if "lora_B" in key:
            state[key] = torch.zeros_like(state[key])


def template(source: str | None) -> Prepare:
    """Conversations, and a base with this chat template, or with none."""
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rows = write("rows.jsonl", [{"messages": said}] * 4)
    return rows if source is None else both(rows, write("base/chat_template.jinja", source))


def impatient(patch: Patch, other: Path) -> None:
    """A second of processor time is enough to render a template here."""
    patch.setattr(template_worker, "_worker", template_worker.Worker(seconds=0))


def no_end(patch: Patch, other: Path) -> None:
    edit("base/tokenizer_config.json", lambda c: c.pop("eos_token"))(patch, other)


def disk(number: int, *, after: int = 0) -> Prepare:
    """Every write of tensors answers with this error, behind half a file; the first `after` go."""

    def prepare(patch: Patch, other: Path) -> None:
        own, calls = commit.save_file, []

        def save(state: Any, path: Path, **more: Any) -> None:
            calls.append(path)
            if len(calls) <= after:
                return own(state, path, **more)
            Path(path).write_bytes(b"half a file")
            raise OSError(number, os.strerror(number), str(path))

        patch.setattr(commit, "save_file", save)

    return prepare


def without_wandb(patch: Patch, other: Path) -> None:
    patch.setitem(sys.modules, "wandb", None)  # an import of it fails


def rank_edited(patch: Patch, other: Path) -> None:
    config = Path("stopped/config.yaml")
    config.write_text(config.read_text().replace("r: 2", "r: 4"))


def newest(name: str) -> Path:
    return Path("stopped/checkpoints/step-00000004") / name
