"""Lorica adapts a frozen language model to a task by training small adapters.

Importing this module loads nothing heavy: a name is imported when it is first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorica.core.adapter import method
    from lorica.core.attach import activate, adapt, detach, mixed, trainable_parameters, use
    from lorica.core.drive import Driver
    from lorica.core.merge import merge
    from lorica.errors import LoricaError
    from lorica.evaluation.evaluate import evaluate
    from lorica.evaluation.predict import predict
    from lorica.formats.attach import load
    from lorica.formats.combine import combine
    from lorica.formats.export import export_lora
    from lorica.formats.save import save
    from lorica.handover.export import hand_over
    from lorica.handover.verify import verify
    from lorica.methods.dora import Dora
    from lorica.methods.full import Full
    from lorica.methods.lora import Lora
    from lorica.training.each import train_each
    from lorica.training.reference_model import ReferenceModel
    from lorica.training.train import train
    from lorica.training.trainer_callback import AdapterCallback

__version__ = version("lorica")
__all__ = [
    "AdapterCallback",
    "Dora",
    "Driver",
    "Full",
    "Lora",
    "LoricaError",
    "ReferenceModel",
    "activate",
    "adapt",
    "combine",
    "detach",
    "evaluate",
    "export_lora",
    "hand_over",
    "load",
    "merge",
    "method",
    "mixed",
    "predict",
    "save",
    "train",
    "train_each",
    "trainable_parameters",
    "use",
    "verify",
]

_HOMES = {
    "AdapterCallback": "training.trainer_callback",
    "Dora": "methods.dora",
    "Driver": "core.drive",
    "Full": "methods.full",
    "Lora": "methods.lora",
    "LoricaError": "errors",
    "ReferenceModel": "training.reference_model",
    "activate": "core.attach",
    "adapt": "core.attach",
    "combine": "formats.combine",
    "detach": "core.attach",
    "evaluate": "evaluation.evaluate",
    "export_lora": "formats.export",
    "hand_over": "handover.export",
    "load": "formats.attach",
    "merge": "core.merge",
    "method": "core.adapter",
    "mixed": "core.attach",
    "predict": "evaluation.predict",
    "save": "formats.save",
    "train": "training.train",
    "train_each": "training.each",
    "trainable_parameters": "core.attach",
    "use": "core.attach",
    "verify": "handover.verify",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'lorica' has no attribute {name!r}")
    return getattr(import_module(f"lorica.{_HOMES[name]}"), name)
