"""Good files that attacks damage: a base of 10,000 parameters, rows, a run with its adapter."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROWS = [{"prompt": f"{i} plus {i} is ", "completion": f"{2 * i}"} for i in range(12)]


def write_base(folder: Path) -> None:
    """A Llama of two layers with a byte-level tokenizer, and every file that a base may have."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: i for i, sign in enumerate([*letters, "<s>", "</s>", "<pad>"])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    raw.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
        max_new_tokens=4,
        temperature=0.7,
        do_sample=True,
    )
    model.save_pretrained(folder)


def write_rows(path: Path, rows: list[dict[str, object]] | None = None) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS), encoding="utf-8")


def write_all(folder: Path) -> None:
    """base/ rows.jsonl run/ (finished) half/ (to go on with)"""
    import lorica

    write_base(folder / "base")
    write_rows(folder / "rows.jsonl")
    for name, steps in (("run", 2), ("half", 4)):
        lorica.train(
            base=str(folder / "base"),
            data=str(folder / "rows.jsonl"),
            max_steps=steps,
            output=str(folder / name),
            show=False,
            save_steps=2,
            method={"name": "lora", "r": 2},
        )
