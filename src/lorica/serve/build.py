"""Build the engine that `lorica serve` runs: base, bank, decoder, store and scheduler."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from lorica.base.load import LoadedModel
from lorica.errors import ConfigError
from lorica.formats.adapter_file import AdapterFile
from lorica.formats.open_model import open_model
from lorica.generation.decoder import Decoder
from lorica.generation.prompts import check_is_language_model
from lorica.generation.slots import slot_support
from lorica.serve.bank import ServingBank
from lorica.serve.between_steps import BetweenSteps
from lorica.serve.engine import ServingEngine
from lorica.serve.examination import Examiner
from lorica.serve.models import Models
from lorica.serve.names import base_name_of
from lorica.serve.prepare import Prepared, prepare
from lorica.serve.quota import Quota
from lorica.serve.residency import Sized
from lorica.serve.scheduler import Scheduler
from lorica.serve.store import Store
from lorica.serve.twin import fingerprint_of, twin


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What an engine is built with.

    slots: answers that are written at once. reserved_slots: more of them, for tenants that have
    none while others use all. max_length: tokens of prompt and answer together; None: those of the
    base. memory_bytes: of adapters in memory; None: no limit.
    max_queued: requests that wait, of all tenants and of one, which may have at most half of all,
    so that others have room. quotas: by tenant.
    dtype, quantisation: of the base, as in other commands.
    """

    slots: int = 16
    reserved_slots: int = 2
    max_length: int | None = 2048
    memory_bytes: int | None = None
    max_queued: int = 256
    max_queued_per_tenant: int = 64
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    dtype: str | None = None
    quantisation: str | None = None


def open_engine(base: str, settings: EngineSettings) -> ServingEngine:
    """An engine over the base at `base`, without adapters yet; `start` begins to serve.

    Raises: ConfigError, BaseError, FileError if the base cannot be served.
    """
    loaded, has_adapter = open_model(base, dtype=settings.dtype, quantisation=settings.quantisation)
    if has_adapter:
        raise ConfigError(
            f"{base} is an adapter, and the base comes first.",
            fix=f"lorica serve BASE --adapter NAME={base}",
        )
    return engine_of(loaded, settings)


def engine_of(loaded: LoadedModel, settings: EngineSettings) -> ServingEngine:
    """As `open_engine`, over a base that is loaded already. Its model belongs to the engine."""
    check_is_language_model(loaded)
    max_length = _max_length(loaded, settings.max_length)
    changed = threading.Condition()
    between_steps = BetweenSteps(changed)
    copied, bank = twin(loaded.model), ServingBank(loaded.model)
    slots = settings.slots + settings.reserved_slots
    decoder = Decoder(
        loaded.model, slots=slots, max_length=max_length, acting=bank.acting, isolates=True
    )

    def prepared(file: AdapterFile, condition: str | None) -> Prepared:
        return prepare(copied, file, tokenizer=loaded.tokenizer, condition=condition)

    def add(key: str, form: Sized) -> int:
        assert isinstance(form, Prepared), "what `prepared` gave"
        return between_steps.run(lambda: bank.add(key, form))

    def remove(key: str) -> int:
        return between_steps.run(lambda: bank.remove(key))

    name = base_name_of(loaded.path)
    examiner = Examiner(loaded, fingerprint_of(copied, loaded.tokenizer), twin(loaded.model))
    store = Store(
        prepared, add, remove, base_name=name, reader=examiner, budget=settings.memory_bytes
    )
    scheduler = Scheduler(
        clock=time.monotonic,
        max_queued=settings.max_queued,
        max_queued_per_tenant=min(settings.max_queued_per_tenant, max(1, settings.max_queued // 2)),
        quotas=settings.quotas,
        reserved=settings.reserved_slots,
    )
    models = Models(loaded, store, base_name=name, max_length=max_length)
    return ServingEngine(models, decoder, scheduler, between_steps, changed)


def _max_length(loaded: LoadedModel, wanted: int | None) -> int:
    """Raises: ConfigError if the base cannot decode many rows at once."""
    batching = slot_support(loaded.model).batching
    if batching.refused is not None:
        raise ConfigError(
            f"{loaded.path} cannot write several answers at once: {batching.refused}.",
            fix="use lorica generate, which writes them one after another",
        )
    limits = [n for n in (wanted, loaded.max_length, batching.shared) if n is not None]
    if not limits:
        raise ConfigError("the base does not state its context.", fix="pass --max_length")
    return min(limits)
