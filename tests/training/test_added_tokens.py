"""data.add_tokens: new tokens get rows, which are trained, saved and opened with the tokenizer."""

import json

import pytest
import torch
import transformers as tf

import lorica
from lorica.base.load import load
from lorica.errors import ConfigError
from lorica.formats.open_adapter import open_adapter
from tests.base.classifiers import BERT, model, save

NEW = ["<start|tag>", "zyx"]


def rows(folder):
    path = folder / "rows.jsonl"
    texts = [{"prompt": "the cat <start|tag>", "completion": f" sat zyx{i}"} for i in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return str(path)


@pytest.mark.filterwarnings("ignore")  # of peft's own
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_are_trained_saved_and_come_back(tied, dtype, tmp_path):
    made = tf.LlamaForCausalLM(tf.LlamaConfig(**BERT, tie_word_embeddings=tied))
    base = save(tmp_path / "base", made)
    data = {"path": rows(tmp_path), "add_tokens": NEW}
    lorica.train(
        base=base,
        data=data,
        max_steps=3,
        learning_rate=1e-2,
        dtype=dtype,
        output=str(tmp_path / "run"),
        show=False,
    )
    opened = open_adapter(tmp_path / "run")
    ids = opened.tokenizer("the <start|tag> zyx")["input_ids"]
    new = opened.tokenizer.convert_tokens_to_ids(NEW)
    assert set(new) <= set(ids)
    assert len(opened.model.get_input_embeddings().weight) == len(load(base).tokenizer) + 2
    given = torch.tensor([ids])
    with torch.no_grad():
        want = opened.model(input_ids=given).logits
        with lorica.use(opened.model):
            bare = opened.model(input_ids=given).logits
    assert (want - bare)[..., new].abs().max() > 1e-4
    if dtype == "float32":
        from peft import PeftModel

        other = tf.AutoModelForCausalLM.from_pretrained(base)
        own = tf.AutoTokenizer.from_pretrained(tmp_path / "run/adapter")
        other.resize_token_embeddings(len(own), mean_resizing=False)
        with torch.no_grad():
            got = PeftModel.from_pretrained(other, tmp_path / "run/adapter")(given).logits
        torch.testing.assert_close(got, want)


def test_saving_again_replaces_a_folder_with_a_tokenizer(tmp_path):
    base = save(tmp_path / "base", model("llama"))
    lorica.train(
        base=base,
        data={"path": rows(tmp_path), "add_tokens": NEW},
        max_steps=1,
        output=str(tmp_path / "run"),
        show=False,
    )
    opened = open_adapter(tmp_path / "run")
    lorica.save(opened.model, tmp_path / "run/adapter", base_path=base)


def test_a_token_that_is_there_is_named(tmp_path):
    base = save(tmp_path / "base", model("llama"))
    with pytest.raises(ConfigError, match="has already: cat"):
        lorica.train(
            base=base,
            data={"path": rows(tmp_path), "add_tokens": ["cat", "new"]},
            output=str(tmp_path / "run"),
            show=False,
        )
