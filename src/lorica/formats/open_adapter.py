"""Open an adapter or a run as one ready model: base, tokenizer, adapter attached."""

from pathlib import Path

from safetensors import safe_open

from lorica import plain_files
from lorica.base import classifier
from lorica.base.load import DTYPES, LoadedModel, class_weights, where
from lorica.base.load import load as load_base
from lorica.base.quantise import KINDS
from lorica.core.port import ports
from lorica.core.whole import Whole
from lorica.data.prompt_format import prompt_format_from_dict
from lorica.errors import BaseError, FileError, listed
from lorica.formats import commit
from lorica.formats.adapter_folder import adapter_folder
from lorica.formats.folder import CONFIG, MANIFEST, find, load
from lorica.formats.manifest import check_format
from lorica.formats.peft.types import check_types
from lorica.formats.vocabulary import take_vocabulary


def open_adapter(
    path: str | Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    allow_base: str | None = None,
    quantisation: str | None = None,
    double_quantisation: bool | None = None,
) -> LoadedModel:
    """The base that the adapter was trained on, with the adapter active.

    base: another place to load the base from; None: where the adapter says it was.
    dtype: "float32" or "bfloat16"; None: as in training, or float32 where that is not known.
    quantisation: "nf4", "fp4" or "int8", or "none": the float base; None: as in training.
    double_quantisation: None: as in training, or with it.

    Raises: FileError, BaseError, ConfigError; MissingError without bitsandbytes.
    """
    folder = adapter_folder(path)
    find(folder)
    labels, trained, form = None, {}, None
    base = base_of(folder, base)
    if plain_files.is_file(folder / MANIFEST):
        manifest = commit.read_json(folder / MANIFEST)
        check_format(manifest, folder)
        trained = manifest["base"]
        labels = manifest.get("labels")
        form = prompt_format_from_dict(manifest.get("prompt_format"), str(folder / MANIFEST))
        dtype = dtype or (manifest.get("dtype") if manifest.get("dtype") in DTYPES else None)
        task = "SEQ_CLS" if classifier.KIND in str(trained.get("architecture")) else "CAUSAL_LM"
    else:
        config = commit.read_json(folder / CONFIG)
        check_types(config, str(folder))
        task = config.get("task_type") or "CAUSAL_LM"
    if labels is not None:
        check_head(folder, base, labels)
    elif task == "SEQ_CLS":
        labels = classes(folder, base)
    elif task != "CAUSAL_LM":
        raise FileError(
            f"{folder} was trained for {task}, which lorica has no model for.",
            known="CAUSAL_LM, SEQ_CLS",
            fix="lorica.load it on a model that you have loaded",
        )
    then = trained.get("quantisation")
    kind = (then if then in KINDS else None) if quantisation is None else quantisation
    if double_quantisation is None:
        double_quantisation = bool(trained.get("double_quantisation")) if kind == then else True
    loaded = load_base(
        base,
        dtype=dtype or "float32",
        labels=labels,
        quantisation=kind,
        double_quantisation=double_quantisation,
    )
    loaded.notices += take_vocabulary(loaded, folder, find(folder))
    loaded.notices += load(loaded.model, folder, tokenizer=loaded.tokenizer, allow_base=allow_base)
    loaded.notices += not_replaced(loaded)
    loaded.prompt_format = form
    if form is not None and form.kind == "chat" and form.template != loaded.tokenizer.chat_template:
        loaded.tokenizer.chat_template = form.template
        loaded.notices.append(
            "the chat template that the adapter was trained with is used, not the base's"
        )
    return loaded


def not_replaced(base: LoadedModel) -> list[str]:
    """A notice on fresh weights of a classifier that the adapter does not bring."""
    whole = {
        site for site, _, port in ports(base.model) for a in port.values() if isinstance(a, Whole)
    }
    left = [key for key in base.head.fresh if key.rpartition(".")[0] not in whole]
    line = (
        f"the answers are wrong: neither the base nor the adapter holds {listed(left)}, so they "
        "are random numbers; save the adapter with them, modules_to_save=[...]"
    )
    return [line] if left else []


def base_of(folder: Path, base: str | None) -> str:
    """The base of an adapter folder; `base` is taken before the one that the folder names.

    Raises: BaseError if neither names one.
    """
    if not base and plain_files.is_file(folder / MANIFEST):
        manifest = commit.read_json(folder / MANIFEST)
        check_format(manifest, folder)
        base = manifest["base"].get("path")
    elif not base:
        config = commit.read_json(folder / CONFIG)
        check_types(config, str(folder))
        base = config.get("base_model_name_or_path")
    if not base:
        raise BaseError(f"{folder} does not say what base it was trained on.", fix="pass --base")
    return base


def classes(folder: Path, base: str) -> list[str]:
    """The classes of a sequence classifier whose folder does not name them.

    As many as its head has rows; the names are the base's if it has as many, else LABEL_0 ...
    Raises: FileError if no head was saved, and the base brings none of its own; BaseError if the
        base's own head is used and gives no classes.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(where(base), trust_remote_code=False)
    except (OSError, ValueError):  # the loader of the base says what is wrong with it
        config = None
    heads = [] if config is None else head_rows(find(folder), base)
    if config is not None and (not heads or classifier.other_problem(config)):
        classifier.check_head(base, config)
    if not heads and (config is None or not classifier.is_classifier(config)):
        raise FileError(
            f"{folder} is of a sequence classifier, and has no head: its classes are not known.",
            fix="save the adapter with its head, modules_to_save=[...]",
        )
    fault = "no config" if config is None else classifier.fault_of_head(config)
    names = [] if fault else classifier.class_names(config)
    n = heads[0] if heads else len(names)
    return names if len(names) == n else [f"LABEL_{i}" for i in range(n)]


def check_head(folder: Path, base: str, labels: list[str]) -> None:
    """Raises: FileError if the head that `folder` holds has another number of classes."""
    counts = {count for count in head_rows(find(folder), base) if count != len(labels)}
    if counts:
        raise FileError(
            f"{folder / MANIFEST} names {len(labels)} classes, but the head of the adapter has "
            f"{listed(sorted(counts))}.",
            labels=listed(labels, 12),
            fix="copy the folder anew",
        )


def head_rows(file: Path, base: str) -> list[int]:
    """The outputs of each weight and bias of a head that `file` holds, of a classifier on `base`.

    Empty: the file holds no head.
    """
    ends = tuple(f".{key}" for key in class_weights(base))
    with safe_open(file, framework="pt") as tensors:
        names = [key for key in tensors.keys() if f".{key}".endswith(ends)]  # noqa: SIM118
        return [tensors.get_slice(name).get_shape()[0] for name in names]
