"""Read an adapter file into what the bank holds of it, on a twin of the base.

At a linear layer most methods reduce to a form that can be stacked with those of others
(core.row_form). What does not is kept as the adapter's own module, which acts by its hooks.
"""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from lorica.base.condition_texts import fix_condition
from lorica.core.adapter import Adapter
from lorica.core.attach import detach
from lorica.core.bank import Spec, attached
from lorica.core.condition import Conditioned, conditioned_adapters
from lorica.core.row_form import RowForm
from lorica.core.site import Site
from lorica.errors import BaseError, ConfigError, FileError, closest, listed
from lorica.formats.adapter_file import AdapterFile
from lorica.formats.attach import attach
from lorica.serve.twin import fingerprint_of, layers_of_rows

MAX_RANK = 128
"""A form of a larger rank is not stacked: VeRA and MoRA are small, and their forms are not."""
_NAME = "prepared"
_ONE_AT_A_TIME = threading.RLock()
_ALONE = "serve it as a base of its own: lorica merge {folder} --output OUT, then lorica serve OUT"


@dataclass(frozen=True, eq=False)
class Prepared:
    """An adapter as the bank takes it. It shares no memory with the file or the twin.

    forms: by the name of the layer, in the dtype of the layer. modules: by the name of the site,
    what acts by hooks instead. notices: what could not be verified.
    """

    spec: Spec
    forms: Mapping[str, RowForm]
    modules: Mapping[str, Adapter] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """The memory that it takes; tensors that several sites share count once."""
        own = [t for m in self.modules.values() for t in (*m.parameters(), *m.buffers())]
        distinct = {t.data_ptr(): t.numel() * t.element_size() for t in own}
        return sum(distinct.values()) + sum(form.bytes for form in self.forms.values())


@torch.no_grad()
def prepare(
    twin: nn.Module, file: AdapterFile, *, tokenizer: object, condition: str | None = None
) -> Prepared:
    """Check `file` against the base of `twin`, and compute what serving needs. In any thread.

    condition: that a HyperLoRA adapter is generated from.
    Raises: ConfigError if rows of a batch cannot have this adapter beside others, or it was not
        trained on `condition`; BaseError, FileError as formats.attach does. The twin is unchanged.
    """
    _check_mixable(file)
    with _ONE_AT_A_TIME:
        by_row = layers_of_rows(twin)
        notices = _attach(twin, file, tokenizer)
        try:
            _check_condition(twin, file, condition)
            notices += fix_condition(twin, tokenizer, condition)
            return _prepared(twin, file, notices, by_row)
        finally:
            detach(twin, _NAME)


def _attach(twin: nn.Module, file: AdapterFile, tokenizer: object) -> list[str]:
    here = fingerprint_of(twin, tokenizer)
    try:
        return attach(twin, file, _NAME, tokenizer=tokenizer, here=here)
    except BaseError as error:
        own = file.base_path or "its own base"
        fix = f"serve it with the base that it was trained on: lorica serve {own}"
        raise BaseError(error.what, **error.facts, fix=fix) from None


def _check_mixable(file: AdapterFile) -> None:
    """Raises: ConfigError if the adapter acts on all rows of a batch or on none."""
    method, targets = file.spec.method, file.spec.targets
    reason = None
    if targets.modules_to_save or targets.trainable_token_indices:
        reason = "it replaces whole layers or rows of the embedding, for all rows of a batch"
    elif method.replaces_weights:
        reason = "it replaces the quantised weights of its layers, for all rows of a batch"
    elif not method.mixes and "condition" not in vars(method):
        reason = "it changes weights or norms for all rows of a batch"
    if reason is not None:
        raise ConfigError(
            f"{file.folder} is a {method.name} adapter that cannot be served beside others.",
            why=reason,
            fix=_ALONE.format(folder=file.folder),
        )


def _check_condition(twin: nn.Module, file: AdapterFile, condition: str | None) -> None:
    """Raises: ConfigError if `condition` is needed and missing, not taken, or not known."""
    adapters = conditioned_adapters(twin)
    if not adapters:
        if condition is not None:
            raise ConfigError(
                f"{file.folder} is a {file.spec.method.name} adapter, which takes no condition.",
                condition=repr(condition),
                fix="name the adapter without a condition",
            )
        return
    known = adapters[0].known
    if condition is None:
        if adapters[0].factors() is None:
            raise ConfigError(
                f"{file.folder} generates an adapter for each condition, and none is named.",
                known=listed(known, 12) if known else "any embedding",
                fix="name one: NAME:CONDITION",
            )
    elif known and condition not in known:
        raise ConfigError(
            f"{file.folder} was not trained on the condition {condition!r:.120}.",
            closest=closest(condition, known),
            known=listed(known, 12),
            fix="name one that it was trained on",
        )


def _prepared(
    twin: nn.Module, file: AdapterFile, notices: list[str], by_row: Collection[str]
) -> Prepared:
    own = attached(twin, _NAME)
    kinds = ("linear", "expert")
    if odd := [n for n, s in own.sites.items() if s.kind in kinds and n not in by_row]:
        raise ConfigError(
            f"{file.folder} adapts layers that see no rows of a batch, as those of experts.",
            layers=listed(odd),
            fix=_ALONE.format(folder=file.folder),
        )
    forms, modules = dict[str, RowForm](), dict[str, Adapter]()
    for name, site in own.sites.items():
        adapter = own.every[name]
        form = _form(site, adapter)
        if form is not None:
            forms[name] = form
        elif isinstance(adapter, Conditioned):
            raise ConfigError(
                f"{file.folder} ({own.method.name}) has no update for one condition at {name}.",
                fix=_ALONE.format(folder=file.folder),
            )
        else:
            modules[name] = adapter
    return Prepared(file.spec, forms, modules, tuple(notices))


def _form(site: Site, adapter: Adapter) -> RowForm | None:
    """The form of an adapter at a site, as the layer computes; None: it has none to stack.

    Raises: FileError if the layer's dtype cannot hold it.
    """
    if site.kind != "linear":
        return None
    form = adapter.row_form(site.module.forward, site.like.dtype)
    if form is None:
        return None
    form = _without_zeros(form)
    if form.r > MAX_RANK:
        return None
    copied = form.copied_to(site.like)
    if not all(tensor.isfinite().all() for tensor in copied.tensors):
        raise FileError(
            f"the adapter's numbers at {site.name} are not finite in {site.like.dtype}.",
            fix="load the base in float32 or bfloat16, or train the adapter again",
        )
    return copied


def _without_zeros(form: RowForm) -> RowForm:
    """The form without components that do nothing, as pruned ranks leave them."""
    used = (form.a != 0).any(1) & (form.b != 0).any(0)
    return RowForm(form.a[used], form.b[:, used], form.size, form.shift)
