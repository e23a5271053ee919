"""Trains an adapter with transformers' Trainer: OUTPUT ROWS, the rows of each process."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import lorica
from lorica.base.bundled import FOLDER


def main(output: str, rows: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    lorica.adapt(model, lorica.Lora(r=4), target_modules="all-linear", seed=0)
    texts = [f"Item {i}: the lamp is on table {i}, far from the door." for i in range(4)]
    encoded = [tokenizer(text, return_tensors="pt")["input_ids"][0] for text in texts]
    length = min(map(len, encoded))
    data = [{"input_ids": ids[:length], "labels": ids[:length]} for ids in encoded]
    args = TrainingArguments(
        output,
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=rows,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        seed=3,
        data_seed=3,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model, args=args, train_dataset=data, callbacks=[lorica.AdapterCallback()]
    )
    trainer.train()
    trainer.save_model(f"{output}/final")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
