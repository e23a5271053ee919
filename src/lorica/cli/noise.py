"""Messages of other libraries that no user of lorica can act on: named here, and not printed."""

import logging
import os
import warnings
from functools import partial

LIBRARIES = r"(torch|transformers|accelerate|bitsandbytes|huggingface_hub|datasets|tokenizers)"
MESSAGES = {
    "bitsandbytes": ("Failed to load CPU gemm_4bit_forward",),  # its slower path is equally correct
}


def hush() -> None:
    """Hide them for the rest of this process. All other warnings are printed as before."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=LIBRARIES)
    # Methods freeze tensors in some steps, so DDP looks for unused parameters in every step, and
    # torch warns of that from C++, which reads this variable when torch is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name, messages in MESSAGES.items():
        for handler in (logging.lastResort, *logging.getLogger(name).handlers):
            if handler is not None:
                handler.addFilter(partial(_is_shown, messages))


def _is_shown(messages: tuple[str, ...], record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(messages)
