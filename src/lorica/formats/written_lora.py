"""Write an attached LoRA and read it back: what an export and a combination are verified by."""

from pathlib import Path

from torch import Tensor

from lorica.base.load import LoadedModel
from lorica.core.attach import detach, use
from lorica.errors import MergeError
from lorica.formats.attach import load
from lorica.formats.save import save
from lorica.formats.verify import logits_of

EXACT = 1e-5
"""Largest difference of a logit that float32's rounding explains, for logits up to 1; for larger
logits, as a share of the largest."""
WRITTEN, READ = "lorica_written", "lorica_read"


def written_logits(opened: LoadedModel, folder: Path, rows: list[list[int]]) -> Tensor:
    """Write the LoRA that is attached as WRITTEN to `folder`; the logits (N, V) of what is read
    back. It is attached as READ then, and WRITTEN is detached."""
    model = opened.model
    save(
        model,
        folder,
        WRITTEN,
        tokenizer=opened.tokenizer,
        base_path=opened.path,
        labels=opened.labels,
        prompt_format=opened.prompt_format,
    )
    detach(model, WRITTEN)
    load(model, folder, READ, tokenizer=opened.tokenizer)
    with use(model, READ):
        return logits_of(opened, rows)


def check_exact(what: str, difference: float, largest: float) -> None:
    """Raises: MergeError if logits differ by more than rounding explains.

    what: is compared with the LoRA. largest: the largest logit.
    """
    allowed = EXACT * max(1.0, largest)
    if difference > allowed:
        raise MergeError(
            f"the LoRA differs from {what}: logits differ by up to {difference:.3g}. Nothing is "
            "written.",
            allowed=f"{allowed:.3g}",
            fix="check it with lorica eval; if it is sound, report this as a bug",
        )
