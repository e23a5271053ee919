"""Pretrain the bundled base model from scratch: `python -m world.pretrain --out DIR`.

A small Llama (grouped-query attention, tied embeddings) reads packed documents of the world once
and predicts the next token: AdamW, linear warm-up, cosine to zero. Weights stay float32 while
training (with bfloat16 arithmetic on CUDA) and are saved as bfloat16. The defaults are those of
the committed weights. Held-out loss is measured on documents of a seed never trained on.
"""

import argparse
import json
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from world.card import write_card
from world.texts import KINDS, document, documents
from world.tokens import CONTEXT, EOS, PAD, VOCABULARY, token_stream, train_tokenizer

HELD_OUT_SEED = 999_983
DOMAIN_DOCUMENTS = 100
"""Held-out documents that come with the base, for `lorica eval --before own`."""
TOKENIZER_DOCUMENTS = 20_000
WARM_UP = 0.03  # share of the steps


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a pretraining run is told."""

    documents: int  # documents generated; fewer than the tokens need are read again
    tokens: int  # tokens trained on
    batch: int  # rows of CONTEXT tokens per step
    rate: float  # peak learning rate
    decay: float  # weight decay of the matrices
    seed: int
    held_out: int  # documents per kind in the held-out measurement
    compile: bool

    @property
    def steps(self) -> int:
        return max(1, self.tokens // (self.batch * CONTEXT))


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The model, freshly drawn from torch's current seed."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            initializer_range=256**-0.5,  # the usual 0.02 learns to copy later at this width
            bos_token_id=None,
            eos_token_id=tokenizer.get_vocab()[EOS],
            pad_token_id=tokenizer.get_vocab()[PAD],
        )
    )


def optimizer(model: LlamaForCausalLM, settings: Settings) -> torch.optim.AdamW:
    """AdamW with decay on matrices only."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=settings.rate,
        betas=(0.9, 0.95),
        fused=next(model.parameters()).is_cuda,
    )


def rate_at(step: int, settings: Settings) -> float:
    """Learning rate of a step: linear warm-up, then a cosine to zero."""
    warm = max(1, round(WARM_UP * settings.steps))
    if step < warm:
        return settings.rate * (step + 1) / warm
    done = (step - warm) / max(1, settings.steps - warm)
    return settings.rate * 0.5 * (1 + math.cos(math.pi * done))


def token_loss(model: torch.nn.Module, rows: Tensor) -> Tensor:
    """Cross-entropy of every next token in `rows` (rows x CONTEXT), shape rows * (CONTEXT - 1)."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="none"
    )


def fit(model: LlamaForCausalLM, rows: Tensor, settings: Settings) -> list[tuple[int, float]]:
    """Train in place; returns (step, training loss) at some steps."""
    device = next(model.parameters()).device
    maths = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    runner: Any = torch.compile(model) if settings.compile else model
    adam = optimizer(model, settings)
    order = torch.Generator().manual_seed(settings.seed)
    shuffled = torch.randperm(len(rows), generator=order)
    losses: list[tuple[int, float]] = []
    begun = time.perf_counter()
    for step in range(settings.steps):
        for group in adam.param_groups:
            group["lr"] = rate_at(step, settings)
        wanted = torch.arange(step * settings.batch, (step + 1) * settings.batch) % len(rows)
        batch = rows[shuffled[wanted].to(rows.device)].to(device, torch.long)
        with maths:
            loss = token_loss(runner, batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        if step % max(1, settings.steps // 50) == 0 or step == settings.steps - 1:
            losses.append((step, round(loss.item(), 4)))
            print(f"step {step} loss {loss.item():.4f} {time.perf_counter() - begun:.0f} s")
    return losses


@torch.no_grad()
def held_out_losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int
) -> dict[str, tuple[float, int]]:
    """kind -> (mean loss per token, tokens), each document read alone from its own start."""
    device = next(model.parameters()).device
    texts: dict[str, list[str]] = {kind: [] for kind in KINDS}
    index = 0
    while any(len(found) < count for found in texts.values()):
        kind, text = document(HELD_OUT_SEED, index)
        index += 1
        if len(texts[kind]) < count:
            texts[kind].append(text + EOS)
    result: dict[str, tuple[float, int]] = {}
    for kind, found in texts.items():
        total, tokens = 0.0, 0
        for start in range(0, count, 50):
            batch = tokenizer(
                found[start : start + 50],
                padding=True,
                truncation=True,
                padding_side="right",
                return_tensors="pt",
            ).to(device)
            losses = token_loss(model, batch["input_ids"])
            real = batch["attention_mask"][:, 1:].flatten().bool()
            total += losses[real].sum().item()
            tokens += int(real.sum())
        result[kind] = (total / tokens, tokens)
    return result


def run(settings: Settings, out: Path, device: str, processes: int) -> None:
    """Tokenizer, data, training, measurement, and everything written to `out`."""
    torch.manual_seed(settings.seed)
    tokenizer = train_tokenizer(TOKENIZER_DOCUMENTS, settings.seed)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        tokenizer.backend_tokenizer.save(str(file))
        stream = token_stream(file, settings.documents, settings.seed, processes=processes)
    ids = torch.frombuffer(stream, dtype=torch.uint16).view(torch.int16)  # ids stay below 2 ** 15
    rows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT).to(device)
    data_seconds = time.perf_counter() - begun
    model: Any = build(tokenizer)  # transformers' own types of .to() are not torch's
    model.to(device)
    print(f"{model.num_parameters():,} parameters, {len(ids):,} tokens in {data_seconds:.0f} s")
    begun = time.perf_counter()
    losses = fit(model, rows, settings)
    seconds = time.perf_counter() - begun
    model.to(torch.bfloat16).eval()  # what is saved is what is measured
    model.generation_config.max_length = None
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    model.float()
    held_out = held_out_losses(model, tokenizer, settings.held_out)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()}"
    record = {
        "arguments": asdict(settings),
        "parameters": model.num_parameters(),
        "tokens_generated": len(ids),
        "tokens_trained": settings.steps * settings.batch * CONTEXT,
        "steps": settings.steps,
        "device": name if device == "cuda" else f"{name} threads",
        "seconds_training": round(seconds, 1),
        "seconds_data": round(data_seconds, 1),
        "training_loss": losses,
        "held_out_seed": HELD_OUT_SEED,
        "held_out_tokens": {kind: tokens for kind, (_, tokens) in held_out.items()},
        "held_out_loss": {kind: round(loss, 4) for kind, (loss, _) in held_out.items()},
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    write_domain(out)
    write_card(out)


def write_domain(out: Path) -> None:
    """Write held-out documents beside the weights, as rows of text."""
    texts = (text for _, text in documents(DOMAIN_DOCUMENTS, HELD_OUT_SEED))
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (out / "domain.jsonl").write_text(rows, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m world.pretrain", description=__doc__)
    parser.add_argument("--documents", type=int, default=3_000_000, help="documents to generate")
    parser.add_argument("--tokens", type=int, default=600_000_000, help="tokens to train on")
    parser.add_argument("--batch", type=int, default=64, help="rows of 512 tokens per step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=200, help="held-out documents per kind")
    cuda = torch.cuda.is_available()
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=cuda)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    chosen = vars(parser.parse_args(arguments))
    out, device, processes = (chosen.pop(key) for key in ("out", "device", "processes"))
    out.mkdir(parents=True, exist_ok=True)
    run(Settings(**chosen), out, device, processes)


if __name__ == "__main__":
    main()
