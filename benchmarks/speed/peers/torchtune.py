"""torchtune's model, LoRA layers, batches and loss, as its LoRA recipe for one device uses them."""

from typing import Any

import torch
from torchtune.data import padded_collate_sft
from torchtune.models.llama2 import lora_llama2
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.modules.loss import CEWithChunkedOutputLoss
from torchtune.modules.peft import get_adapter_params, set_trainable_params
from torchtune.training import scale_grads, set_activation_checkpointing, set_default_dtype

from benchmarks.speed.sides import Side, Work
from benchmarks.speed.work import Row, Shape

MICRO = 2
"""Rows of a micro-batch in the recipe's settings; the batch is accumulated."""
ADAPTED = ("q_proj", "k_proj", "v_proj", "output_proj")


class Torchtune(Work):
    """Padded micro-batches, each block checkpointed, the head on all positions in chunks."""

    def __init__(self, side: Side):
        super().__init__(side)
        set_trainable_params(self.model, get_adapter_params(self.model))
        set_activation_checkpointing(self.model, auto_wrap_policy={TransformerSelfAttentionLayer})
        self.criterion = CEWithChunkedOutputLoss()
        self.model.set_num_output_chunks(self.criterion.num_output_chunks)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, fused=True)

    def base(self, shape: Shape) -> Any:
        torch.manual_seed(0)
        with set_default_dtype(getattr(torch, self.side.dtype)):
            return lora_llama2(
                list(ADAPTED),
                apply_lora_to_mlp=True,
                vocab_size=shape.vocabulary,
                num_layers=shape.layers,
                num_heads=shape.heads,
                num_kv_heads=shape.heads,
                embed_dim=shape.width,
                intermediate_dim=shape.mlp,
                max_seq_len=2048,
                lora_rank=16,
                lora_alpha=32,
                lora_dropout=0.0,
            )

    def step(self, i: int) -> None:
        rows, learned = self.rows[i], 0
        for start in range(0, len(rows), MICRO):
            loss, tokens = self.micro_batch(rows[start : start + MICRO])
            (loss * tokens).backward()
            learned += tokens
        scale_grads(self.model, torch.tensor(1 / learned))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def micro_batch(self, rows: list[Row]) -> tuple[Any, int]:
        """The mean loss over its label tokens, and how many there are."""
        batch = padded_collate_sft([{"tokens": row.ids, "labels": row.labels} for row in rows])
        labels = batch["labels"]
        nothing = torch.full((len(labels), 1), self.criterion.ignore_index)
        labels = torch.hstack((labels[:, 1:], nothing))
        return self.criterion(self.model(batch["tokens"]), labels), int((labels >= 0).sum())
