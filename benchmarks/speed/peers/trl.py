"""TRL's SFTTrainer, with PEFT's LoRA, on rows that are tokenised."""

from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from benchmarks.speed.sides import Side, Work


class Trl(Work):
    """Its whole training loop: a round is a call of `train` on as many batches as are asked for."""

    def __init__(self, side: Side):
        super().__init__(side)
        self.folder = TemporaryDirectory()
        args = SFTConfig(
            output_dir=self.folder.name,
            disable_tqdm=True,
            per_device_train_batch_size=side.batch,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            **side.settings,
        )
        self.trainer = SFTTrainer(
            self.model,
            args,
            train_dataset=self.dataset(),
            processing_class=tokenizer(),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        )

    def dataset(self) -> Dataset:
        rows = [row for batch in self.rows for row in batch]
        return Dataset.from_list(
            [
                {"input_ids": row.ids, "completion_mask": [int(label >= 0) for label in row.labels]}
                for row in rows
            ]
        )

    def steps(self, count: int) -> None:
        self.trainer.args.max_steps = count
        self.trainer.train()


def tokenizer() -> Any:
    """One that knows nothing: the trainer wants to know which token pads."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<s>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<s>",
    )
