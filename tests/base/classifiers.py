"""Tiny checkpoints from which sequence classifiers are loaded: random weights, no downloads."""

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lorica.core.draws import drawing

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = ["a", "the", "cat", "dog", "ran", "sat", "good", "bad", "very", "not", "film", "was", "is"]
SIZE = len(SPECIAL) + len(WORDS)
BERT: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
SEQ: dict[str, Any] = {
    "vocab_size": SIZE,
    "d_model": 16,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def tokenizer() -> Any:
    """Words to ids, with <s> in front and </s> behind."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=own,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=30,
    )


def model(name: str, **changed: Any) -> Any:
    """The model of a row of `CHECKPOINTS`; `changed` stands over its config."""
    kind, config, settings, _ = CHECKPOINTS[name]
    with drawing(1):
        return getattr(tf, kind)(getattr(tf, config)(**(settings | changed)))


def save(folder: Path, made: Any) -> str:
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def ids() -> torch.Tensor:
    return torch.tensor([[0, 6, 7, 9, 2], [0, 5, 8, 9, 2]])


# name: (class that wrote the checkpoint, its config, settings, layers trained whole)
CHECKPOINTS: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "bert without pooler": ("BertForMaskedLM", "BertConfig", BERT, ["bert.pooler", "classifier"]),
    "bert with pooler": ("BertForPreTraining", "BertConfig", BERT, ["classifier"]),
    "bert backbone": ("BertModel", "BertConfig", BERT, ["classifier"]),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {
            "vocab_size": SIZE,
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 24,
            "max_position_embeddings": 32,
            "pad_token_id": 1,
        },
        ["classifier", "pre_classifier"],
    ),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", BERT, ["classifier"]),
    "albert": (
        "AlbertForMaskedLM",
        "AlbertConfig",
        BERT | {"embedding_size": 8},
        ["albert.pooler", "classifier"],
    ),
    "deberta": (
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        BERT | {"pooler_hidden_size": 16},
        ["classifier", "pooler"],
    ),
    "electra": (
        "ElectraForPreTraining",
        "ElectraConfig",
        BERT | {"embedding_size": 16},
        ["classifier"],
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        BERT | {"local_attention": 8, "cls_token_id": 0, "sep_token_id": 2},
        ["classifier"],
    ),
    "xlnet": (
        "XLNetLMHeadModel",
        "XLNetConfig",
        SEQ | {"n_layer": 2, "n_head": 2, "d_inner": 24},
        ["logits_proj", "sequence_summary"],
    ),
    "bart": (
        "BartForConditionalGeneration",
        "BartConfig",
        SEQ
        | {
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_position_embeddings": 32,
        },
        ["classification_head"],
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        SEQ | {"d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 1},
        ["classification_head"],
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": SIZE,
            "n_positions": 32,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
        },
        ["score"],
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", BERT, ["score"]),
}
