"""Why a folder is no adapter that can be read, and the command or the file that changes that."""

import re
from pathlib import Path
from typing import NoReturn

from lorica.errors import FileError, listed
from lorica.formats.adapter_folder import (
    CONFIG,
    LITGPT,
    LITGPT_PICKLED,
    MANIFEST,
    PICKLED,
    WEIGHTS,
)
from lorica.formats.foreign.diffusion import refuse_diffusion

PICKLES = {
    PICKLED: WEIGHTS,
    LITGPT_PICKLED: LITGPT,
    "adapter_model.pt": WEIGHTS,
}
"""Pickle -> the safetensors file that it is converted to: of PEFT, LitGPT and torchtune."""
TUNE_PICKLE = r"adapter_\d+\.pt"


def refuse(folder: Path) -> NoReturn:
    """Raises: FileError that says what `folder` holds in place of an adapter."""
    refuse_known(folder)
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    raise FileError(
        f"{folder} is not an adapter folder." if folder.exists() else f"{folder} does not exist.",
        needed=f"{WEIGHTS} and {MANIFEST} or {CONFIG}",
        found=listed(names, 8) if names else "nothing",
        fix="name the folder that holds these files",
    )


def refuse_known(folder: Path) -> None:
    """Raises: FileError if `folder` is, or has inside, an adapter that is not read as it stands."""
    if folder.is_file():
        _refuse_file(folder)
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        target = PICKLES.get(name)
        if re.fullmatch(TUNE_PICKLE, name):
            target = name.replace(".pt", ".safetensors")
        if target is not None and (folder / name).is_file():
            _refuse_pickle(folder / name, folder / target)
    for name in names:
        if name.endswith(".safetensors") and (folder / name).is_file():
            _refuse_diffusion(folder / name)
    if "adapters.npz" in names:
        raise FileError(
            f"{folder / 'adapters.npz'} is of an old mlx-lm, which wrote no safetensors.",
            fix="load and save it as adapters.safetensors with mlx: "
            "mx.save_safetensors('adapters.safetensors', mx.load('adapters.npz'))",
        )
    if inside := _adapters_inside(folder):
        newest = f"; the newest is {folder / inside[-1]}" if len(inside) > 1 else ""
        raise FileError(
            f"{folder} is not an adapter folder, and has adapters inside.",
            adapters_inside=", ".join(inside),
            fix=f"name the folder of one of them{newest}",
        )


def _refuse_file(path: Path) -> NoReturn:
    if path.suffix == ".safetensors":
        _refuse_diffusion(path)
    raise FileError(
        f"{path} is a file; an adapter is a folder with its weights and {CONFIG}.",
        fix=f"name the folder: {path.parent}",
    )


def _refuse_diffusion(path: Path) -> None:
    from lorica.formats.commit import tensor_names  # torch, which most folders do not ask for

    refuse_diffusion(tensor_names(path), path)


def _refuse_pickle(path: Path, target: Path) -> NoReturn:
    convert = (
        'python -c "import torch, safetensors.torch as s; t = torch.load('
        f"'{path}', weights_only=True); s.save_file({{k: v.contiguous().clone() for k, v in "
        f"t.get('model', t).items()}}, '{target}')\""
    )
    raise FileError(
        f"{path} is a pickle, which can run code when it is read.",
        fix=f"convert it where that is safe: {convert}",
    )


def _adapters_inside(folder: Path) -> list[str]:
    """Adapter folders one or two levels below, as checkpoints of a trainer; the newest last."""
    if not folder.is_dir():
        return []
    configs = [*folder.glob(f"*/{CONFIG}"), *folder.glob(f"checkpoint-*/*/{CONFIG}")]
    weights = [*folder.glob(f"*/{WEIGHTS}"), *folder.glob(f"*/{LITGPT}")]
    inside = {str(p.parent.relative_to(folder)) for p in [*configs, *weights]}
    return sorted(inside, key=_by_step)


def _by_step(name: str) -> tuple[int, str]:
    """Checkpoints by their step, behind folders of other names."""
    step = re.fullmatch(r"(?:checkpoint|step|epoch)[-_](\d+)(?:/.*)?", name)
    return (int(step[1]) + 1 if step else 0, name)
