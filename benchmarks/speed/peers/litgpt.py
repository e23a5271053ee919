"""LitGPT's model, LoRA layers, loss and AdamW, under Fabric, as its LoRA script uses them."""

from typing import Any

import lightning
import torch
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer

from benchmarks.speed.sides import Side, Work
from benchmarks.speed.work import Row, Shape

CHUNK = 128
"""Positions that its script gives the head at a time."""
ADAPTED = ("query", "key", "value", "projection", "mlp")


class LitGpt(Work):
    """Rows one by one, as it trains by default; the batch is accumulated. Prompts are learned."""

    def __init__(self, side: Side):
        super().__init__(side)
        mark_only_lora_as_trainable(self.model)
        self.fabric = lightning.Fabric(
            accelerator="cpu", devices=1, precision=side.settings["precision"]
        )
        self.model = self.fabric.setup_module(self.model)
        optimizer = instantiate_torch_optimizer("AdamW", self.model.parameters())
        self.optimizer = self.fabric.setup_optimizers(optimizer)

    def base(self, shape: Shape) -> Any:
        torch.manual_seed(0)
        return GPT(
            Config(
                name="shape",
                n_layer=shape.layers,
                n_embd=shape.width,
                n_head=shape.heads,
                intermediate_size=shape.mlp,
                vocab_size=shape.vocabulary,
                block_size=2048,
                padded_vocab_size=shape.vocabulary,
                rotary_percentage=1.0,
                parallel_residual=False,
                bias=False,
                norm_class_name="RMSNorm",
                mlp_class_name="LLaMAMLP",
                lora_r=16,
                lora_alpha=32,
                lora_dropout=0.0,
                **{f"lora_{name}": True for name in ADAPTED},
            )
        )

    def step(self, i: int) -> None:
        rows = self.rows[i]
        for number, row in enumerate(rows, 1):
            with self.fabric.no_backward_sync(self.model, enabled=number < len(rows)):
                self.fabric.backward(self.row_loss(row) / len(rows))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def row_loss(self, row: Row) -> Any:
        ids = torch.tensor([row.ids])
        chunks = self.model(ids, lm_head_chunk_size=CHUNK)
        chunks[-1] = chunks[-1][:, :-1]  # nothing follows the last token
        return chunked_cross_entropy(chunks, ids[:, 1:])
