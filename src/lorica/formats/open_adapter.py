"""Open an adapter or a run as a ready model: base and tokenizer loaded, adapter attached."""

from pathlib import Path

from lorica.base import classifier
from lorica.base.describe import class_weights, locate
from lorica.base.load import DTYPES, LoadedModel
from lorica.base.load import load as load_base
from lorica.base.offload import place_adapters
from lorica.base.quantise import KINDS
from lorica.core.bank import adapted_layers
from lorica.core.modules_to_save import ModuleCopy
from lorica.errors import BaseError, FileError, listed
from lorica.formats.adapter_file import AdapterFile, read
from lorica.formats.adapter_folder import MANIFEST
from lorica.formats.attach import attach
from lorica.formats.vocabulary import adopt_vocabulary


def open_adapter(
    path: str | Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    allow_base: str | None = None,
    quantisation: str | None = None,
    double_quantisation: bool | None = None,
    offload: str | None = None,
) -> LoadedModel:
    """The base that the adapter was trained on, with the adapter active.

    path: of an adapter, or of a run.
    base: another place to load the base from; None: the one that the adapter names.
    dtype: "float32" or "bfloat16"; None: as in training, or float32 where that is not known.
    quantisation: "nf4", "fp4" or "int8", or "none": the float base; None: as in training.
    double_quantisation: None: as in training, or with it.
    offload: "disk" or "cpu": where the weights of the base wait; see lorica.base.offload.

    Raises: FileError, BaseError, ConfigError; MissingError without bitsandbytes.
    """
    return open_file(
        read(path),
        base=base,
        dtype=dtype,
        allow_base=allow_base,
        quantisation=quantisation,
        double_quantisation=double_quantisation,
        offload=offload,
    )


def open_file(
    file: AdapterFile,
    *,
    base: str | None = None,
    dtype: str | None = None,
    allow_base: str | None = None,
    quantisation: str | None = None,
    double_quantisation: bool | None = None,
    offload: str | None = None,
) -> LoadedModel:
    """As `open_adapter`, of a folder that was read already."""
    base = base_of(file, base)
    saved_dtype = None if file.manifest is None else file.manifest.dtype
    dtype = dtype or (saved_dtype if saved_dtype in DTYPES else "float32")
    labels = _labels(file, base)
    kind, double = _quantisation(file, quantisation, double_quantisation)
    loaded = load_base(
        base,
        dtype=dtype,
        labels=labels,
        quantisation=kind,
        double_quantisation=double,
        offload=offload,
    )
    loaded.notices += adopt_vocabulary(loaded, file)
    loaded.notices += attach(loaded.model, file, tokenizer=loaded.tokenizer, allow_base=allow_base)
    if offload is not None:
        place_adapters(loaded.model)
    loaded.notices += _random_heads(loaded)
    loaded.prompt_format = form = file.prompt_format
    if form is not None and form.kind == "chat" and form.template != loaded.tokenizer.chat_template:
        loaded.tokenizer.chat_template = form.template
        loaded.notices.append(
            "the chat template that the adapter was trained with is used, not the base's"
        )
    return loaded


def base_of(file: AdapterFile, base: str | None) -> str:
    """`base`, or the base that the adapter names. Raises: BaseError if there is neither."""
    if path := base or file.base_path:
        return path
    raise BaseError(f"{file.folder} does not name the base it was trained on.", fix="pass --base")


def _quantisation(
    file: AdapterFile, kind: str | None, double: bool | None
) -> tuple[str | None, bool]:
    """What to load the base with, from what was asked for and what training had."""
    trained = None if file.base is None else file.base.quantisation
    if kind is None:
        kind = trained if trained in KINDS else None
    if double is None:
        double = kind != trained or (file.base is not None and file.base.double_quantisation)
    return kind, double


def _labels(file: AdapterFile, base: str) -> list[str] | None:
    """The classes to load the base with; None: it is a language model."""
    if file.labels is not None:
        _check_head(file, base, file.labels)
        return file.labels
    if file.task == "SEQ_CLS":
        return _unnamed_classes(file, base)
    if file.task != "CAUSAL_LM":
        raise FileError(
            f"{file.folder} was trained for {file.task}, which lorica has no model for.",
            known="CAUSAL_LM, SEQ_CLS",
            fix="lorica.load it on a model that you have loaded",
        )
    return None


def _unnamed_classes(file: AdapterFile, base: str) -> list[str]:
    """The classes of a sequence classifier whose folder does not name them.

    As many as its head has rows; the names are the base's if it has as many, else LABEL_0 ...
    Raises: FileError if no head was saved, and the base has none of its own; BaseError if the
        base's own head is used and gives no classes.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(locate(base), trust_remote_code=False)
    except (OSError, ValueError):  # loading the base says what is wrong with it
        config = None
    heads = [] if config is None else head_rows(file, base)
    if config is not None and (not heads or classifier.other_problem(config)):
        classifier.check_head(base, config)
    if not heads and (config is None or not classifier.is_classifier(config)):
        raise FileError(
            f"{file.folder} is of a sequence classifier, and has no head: its classes are not "
            "known.",
            fix="save the adapter with its head, modules_to_save=[...]",
        )
    fault = "no config" if config is None else classifier.fault_of_head(config)
    names = [] if fault else classifier.class_names(config)
    n = heads[0] if heads else len(names)
    return names if len(names) == n else [f"LABEL_{i}" for i in range(n)]


def _check_head(file: AdapterFile, base: str, labels: list[str]) -> None:
    """Raises: FileError if the head in `file` has another number of classes."""
    if counts := {count for count in head_rows(file, base) if count != len(labels)}:
        raise FileError(
            f"{file.folder / MANIFEST} names {len(labels)} classes, but the head of the adapter "
            f"has {listed(sorted(counts))}.",
            labels=listed(labels, 12),
            fix="copy the folder again",
        )


def head_rows(file: AdapterFile, base: str) -> list[int]:
    """The outputs of each weight and bias of a head that `file` has, of a classifier on `base`.

    Empty: the file has no head.
    """
    return [len(t) for t in file.tensors_of(class_weights(base)).values() if t.ndim]


def _random_heads(base: LoadedModel) -> list[str]:
    """A notice on fresh weights of a classifier that the adapter does not bring."""
    whole = {
        site
        for site, _, adapters in adapted_layers(base.model)
        for a in adapters.values()
        if isinstance(a, ModuleCopy)
    }
    random = [key for key in base.head.fresh if key.rpartition(".")[0] not in whole]
    notice = (
        f"the answers are wrong: neither the base nor the adapter holds {listed(random)}, so they "
        "are random numbers; save the adapter with them, modules_to_save=[...]"
    )
    return [notice] if random else []
