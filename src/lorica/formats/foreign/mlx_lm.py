"""mlx-lm: adapters.safetensors, and adapter_config.json with the arguments of its training.

Read off mlx-lm 0.10.0 to 0.32.0 (mlx_lm/tuner/lora.py, dora.py, utils.py). Its layers have the
names of transformers' models, and its matrices are transposed:

    <layer>.lora_a (I, R)   <layer>.lora_b (R, O)   <layer>.m (O,), of a DoRA

The scale is lora_parameters.scale. Up to 0.14.1 it was scale * alpha / rank; later versions still
wrote `alpha`, without any effect, up to 0.19. Of the config mlx-lm itself reads only num_layers,
fine_tune_type (use_dora up to 0.19) and lora_parameters: the rest are arguments of the training.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lorica.errors import FileError, listed
from lorica.formats.adapter_folder import CONFIG, MLX
from lorica.formats.foreign.translation import FolderFiles, Translation
from lorica.formats.peft.types import check_number

PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
KNOWN = ("rank", "scale", "dropout", "alpha", "keys")
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
COMMUNITY = "mlx-community/"


def translate(files: FolderFiles) -> Translation:
    """A folder of mlx-lm. Raises: FileError for a key that is not understood, or no scale."""
    config, weights = files.json(CONFIG), files.folder / MLX
    kind = config.get("fine_tune_type") or ("dora" if config.get("use_dora") else "lora")
    if kind not in ("lora", "dora"):
        raise FileError(
            f"{files.folder} is not an adapter: its fine_tune_type is {kind!r}, all weights.",
            fix="write the model with mlx_lm.fuse, and load that",
        )
    rank, scale, dropout = _settings(config, files.folder / CONFIG)
    tensors = _tensors(files.tensors(MLX), rank, kind == "dora", weights)
    base, notices = _base(config)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": dropout,
        "use_dora": kind == "dora",
        "target_modules": sorted({_site(key) for key in tensors}),
    }
    own = {f"base_model.model.{key}": tensor for key, tensor in tensors.items()}
    return Translation("mlx-lm", own, settings, notices)


def _settings(config: Mapping[str, Any], path: Path) -> tuple[int, float, float]:
    """(rank, scale of B A, dropout). Raises: FileError if the scale cannot be known."""
    own = config.get("lora_parameters")
    if not isinstance(own, dict) or not {"rank", "scale"} <= own.keys():
        raise FileError(
            f"{path} has no rank and scale under lora_parameters: the scale is not known.",
            fix='write "lora_parameters": {"rank": ..., "scale": ..., "dropout": 0.0} into the '
            "file, as in training; mlx-lm's default is rank 8, scale 20",
        )
    if unknown := sorted(own.keys() - set(KNOWN)):
        raise FileError(
            f"{path} has lora_parameters that lorica does not read: {listed(unknown)}.",
            fix="write the model with mlx_lm.fuse, and load that",
        )
    rank = int(check_number(own["rank"], "lora_parameters.rank", path, least=1, whole=True))
    scale = check_number(own["scale"], "lora_parameters.scale", path)
    dropout = check_number(
        own.get("dropout") or 0.0, "lora_parameters.dropout", path, least=0, most=0.99
    )
    alpha = own.get("alpha")
    if alpha is None or {"num_layers", "fine_tune_type"} & config.keys():
        return rank, scale, dropout
    factor = check_number(alpha, "lora_parameters.alpha", path) / rank
    if factor != 1 and "use_dora" in config:
        raise FileError(
            f"{path} has an alpha, and does not say which mlx-lm wrote it: its scale is "
            f"{scale * factor:g} up to mlx-lm 0.14.1, and {scale:g} in later ones.",
            fix="set lora_parameters.scale to the one of the two that is right, and delete alpha",
        )
    return rank, scale * factor, dropout


def _tensors(
    tensors: Mapping[str, Tensor], rank: int, is_dora: bool, weights: Path
) -> dict[str, Tensor]:
    """The tensors in PEFT's shapes. Raises: FileError for what is not a LoRA of a linear layer."""
    parts = {"lora_a", "lora_b", *(["m"] if is_dora else [])}
    of_site: dict[str, set[str]] = {}
    for key in tensors:
        site, _, part = key.rpartition(".")
        of_site.setdefault(site, set()).add(part)
    problems = [
        f"{site} has {listed(sorted(own), 6)}, not {listed(sorted(parts))}"
        for site, own in of_site.items()
        if own != parts
    ]
    for key, tensor in tensors.items():
        site, _, part = key.rpartition(".")
        axis = {"lora_a": 1, "lora_b": 0}.get(part)
        if site.rpartition(".")[2] in EMBEDDINGS:
            problems.append(f"{key} is of an embedding, where mlx-lm adapts a tied head too")
        elif tensor.ndim == 3:
            problems.append(f"{key} is of experts, {tuple(tensor.shape)}")
        elif axis is not None and (tensor.ndim != 2 or tensor.shape[axis] != rank):
            problems.append(f"{key} is {tuple(tensor.shape)}, and the rank is {rank}")
    if problems or not tensors:
        raise FileError(
            f"{weights} is not read: it is not a {'DoRA' if is_dora else 'LoRA'} of linear layers.",
            tensors=listed(problems),
            fix="write the model with mlx_lm.fuse, and load that",
        )
    return {
        f"{key.rpartition('.')[0]}.{PARTS[part]}": t.T.contiguous() if t.ndim == 2 else t
        for key, t in tensors.items()
        if (part := key.rpartition(".")[2])
    }


def _site(key: str) -> str:
    return key.partition(".lora_")[0]


def _base(config: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """(the base that transformers can load, notices)."""
    model = config.get("model")
    if not isinstance(model, str) or not model:
        return None, []
    if not model.startswith(COMMUNITY):
        return model, []
    notice = (
        f"the adapter was trained on {model}, which is in MLX's format, often in 4 bits: name "
        "the model that it was converted from as the base; the answers differ a little"
    )
    return None, [notice]
