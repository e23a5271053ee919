"""The head of a sequence classifier: what is fresh, what is kept, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import lorica
from lorica.base.load import load
from lorica.core.draws import drawing
from lorica.errors import BaseError, ConfigError, FileError
from lorica.formats.open_adapter import open_adapter
from lorica.training.trainer_callback import AdapterCallback
from tests.base.classifiers import BERT, CHECKPOINTS, ids, model, save
from tests.marks import slow_but

CLASSES = ["bad", "fair", "good"]
QUICK = ("bert without pooler", "distilbert", "roberta", "t5", "llama")


def adapted(base, folder):
    """An adapter of `base` that has moved, saved in `folder`."""
    lorica.adapt(base.model, lorica.Lora(r=2), modules_to_save=base.head.whole)
    with drawing(3), torch.no_grad():
        for parameter in base.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return lorica.save(base.model, folder, base_path=base.path, labels=base.labels)


def logits(model):
    with torch.no_grad():
        return model.eval()(ids()).logits


@pytest.mark.filterwarnings("ignore")  # of peft's own
@pytest.mark.parametrize("name", slow_but(QUICK, CHECKPOINTS))
def test_every_fresh_head_is_trained_and_saved_whole(name, tmp_path):
    """PEFT puts the adapter on a base whose fresh head was drawn otherwise: the same logits."""
    path = save(tmp_path / "base", model(name))
    base = load(path, labels=CLASSES)
    assert base.head.whole == CHECKPOINTS[name][3]
    assert base.head.fresh
    assert any("new, trained and saved whole" in line for line in base.notices)
    folder = adapted(base, tmp_path / "adapter")
    want = logits(base.model)
    assert torch.equal(logits(open_adapter(folder).model), want)
    from peft import PeftModel

    with drawing(99):
        other = tf.AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(other, folder)), want)
    with drawing(98):
        another = tf.AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
    lorica.load(another, folder)  # the base is the same one, whatever its fresh head holds
    torch.testing.assert_close(logits(another), want)


@pytest.mark.parametrize("name", slow_but(QUICK, CHECKPOINTS))
def test_a_hole_outside_the_head_is_refused(name, tmp_path):
    """Whatever a checkpoint loses that its own class has: blocks, embeddings, poolers."""
    path = save(tmp_path, model(name))
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    needed = {k for k, _ in load(path, labels=CLASSES).model.named_parameters()}
    lost = [k for k in whole if any(f".{n}".endswith(f".{k}") for n in needed)]
    for key in (lost[0], lost[len(lost) // 2], lost[-1]):
        save_file({k: t for k, t in whole.items() if k != key}, file, metadata={"format": "pt"})
        with pytest.raises(FileError, match="not complete") as error:
            load(path, labels=CLASSES)
        assert key.rpartition(".")[2] in str(error.value)


def classifier(folder: Path, names: list[str], name: str = "roberta") -> str:
    """A checkpoint that is a classifier of `names`, whose head is as good as trained."""
    plain = model(name)
    kind = getattr(tf, type(plain).__name__.replace("ForMaskedLM", "ForSequenceClassification"))
    with drawing(2):
        made = kind(type(plain.config)(**BERT, id2label=dict(enumerate(names))))
    return save(folder, made)


def head_of(path: str, labels: list[str]) -> torch.Tensor:
    return load(path, labels=labels).model.get_submodule("classifier.out_proj").weight


def test_a_head_for_these_classes_is_kept_and_no_other(tmp_path):
    path = classifier(tmp_path, ["zebra", "ant"])
    own = load_file(tmp_path / "model.safetensors")["classifier.out_proj.weight"]
    kept = load(path, labels=["zebra", "ant"])
    assert torch.equal(kept.model.get_submodule("classifier.out_proj").weight, own)
    assert kept.head.fresh == []
    assert kept.head.whole == ["classifier"]
    for labels in (["ant", "zebra"], ["neg", "pos"], CLASSES):
        fresh = load(path, labels=labels)
        weight = fresh.model.get_submodule("classifier.out_proj").weight
        assert not torch.equal(weight, own)
        assert torch.equal(weight, head_of(path, labels))  # from seed 0, each time
        assert weight.std() < 0.1
        assert fresh.head.fresh == ["classifier.out_proj.bias", "classifier.out_proj.weight"]
        (line,) = [line for line in fresh.notices if "new, trained" in line]
        assert "zebra, ant" in line


def test_a_classifier_that_lost_its_head_is_refused(tmp_path):
    """Its config says that it has one: random numbers in its place would answer."""
    path = classifier(tmp_path, ["a", "b"])
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    rest = {k: t for k, t in whole.items() if not k.startswith("classifier.")}
    save_file(rest, file, metadata={"format": "pt"})
    with pytest.raises(FileError, match="not complete"):
        load(path, labels=["a", "b"])


def test_a_head_of_another_size_than_its_config_says_is_refused(tmp_path):
    path = classifier(tmp_path, ["a", "b"])
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match="not complete"):
        load(path, labels=["a", "b", "c"])


def test_a_token_classifier_gives_no_classes_to_rows(tmp_path):
    """Its head has the name and may have the shape of ours."""
    with drawing(2):
        made = tf.BertForTokenClassification(tf.BertConfig(**BERT, num_labels=3))
    path = save(tmp_path, made)
    own = load_file(tmp_path / "model.safetensors")["classifier.weight"]
    base = load(path, labels=CLASSES)
    assert not torch.equal(base.model.get_submodule("classifier").weight, own)
    assert "classifier.weight" in base.head.fresh


def test_a_classifier_is_no_language_model(tmp_path):
    with pytest.raises(BaseError, match="is a classifier"):
        load(classifier(tmp_path, ["a", "b"]))


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_without_the_fresh_pooler_says_so(tmp_path):
    """As PEFT saves one: its classifier, but not the pooler that BERT's checkpoint lacks."""
    path = save(tmp_path / "base", model("bert without pooler"))
    base = load(path, labels=CLASSES)
    lorica.adapt(base.model, lorica.Lora(r=2), modules_to_save=["classifier"])
    lorica.save(base.model, tmp_path / "a", base_path=path, labels=CLASSES)
    opened = open_adapter(tmp_path / "a", allow_base="same shapes")
    assert any("bert.pooler" in line and "random" in line for line in opened.notices)


def test_a_fresh_pooler_is_not_packed(tmp_path):
    path = save(tmp_path, model("bert without pooler"))
    base = load(path, labels=CLASSES, quantisation="nf4")
    assert type(base.model.get_submodule("bert.pooler.dense")) is torch.nn.Linear
    assert (
        type(base.model.get_submodule("bert.encoder.layer.0.output.dense")) is not torch.nn.Linear
    )


@pytest.mark.parametrize("name", ["bart", "xlnet", "roberta", "llama"])
def test_the_classes_of_a_folder_of_pefts_are_counted_at_its_head(name, tmp_path):
    """Without a manifest only the head's tensors tell how many there are, whatever its name."""
    path = save(tmp_path / "base", model(name))
    folder = adapted(load(path, labels=CLASSES), tmp_path / "adapter")
    want = logits(open_adapter(folder).model)
    (folder / "manifest.json").unlink()
    opened = open_adapter(folder)
    assert opened.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert torch.equal(logits(opened.model), want)


NO_NAMES = {
    "two alike": ["bad", "bad", "good"],
    "alike but for blanks": ["bad one", "bad  one", "good"],
    "alike but for a no-break space": ["bad one", "bad\u00a0one", "good"],
    "an empty one": ["", "fair", "good"],
    "a blank one": [" ", "fair", "good"],
    "null": [None, "fair", "good"],
    "a number": [0, "fair", "good"],
    "a list": [["bad"], "fair", "good"],
    "none": [],
    "a single one": ["bad"],
    "one less than the head has": ["bad", "good"],
    "one more than the head has": ["bad", "fair", "good", "best"],
    "a text": "bad",
}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A base, and an adapter with a head of three classes on it."""
    folder = tmp_path_factory.mktemp("named")
    path = save(folder / "base", model("bert with pooler"))
    return path, adapted(load(path, labels=CLASSES), folder / "adapter")


@pytest.mark.parametrize("case", NO_NAMES)
def test_labels_of_a_manifest_that_name_no_classes_are_refused(named, tmp_path, case):
    path = shutil.copytree(named[1], tmp_path / "adapter")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["labels"] = NO_NAMES[case]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileError, match=r"labels|classes") as caught:
        open_adapter(path)
    assert "manifest.json" in str(caught.value)


CONFIGS = {
    "names": ({"id2label": {0: "dog", 1: "bird", 2: "cat"}}, ["dog", "bird", "cat"]),
    "no names": ({"num_labels": 3}, None),
    "two alike": ({"id2label": {0: "dog", 1: "dog", 2: "cat"}}, None),
    "several labels": (
        {
            "id2label": {0: "dog", 1: "bird", 2: "cat"},
            "problem_type": "multi_label_classification",
        },
        None,
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_an_adapter_takes_the_names_of_classes_from_the_config_of_its_model(case, tmp_path):
    settings, labels = CONFIGS[case]
    made = tf.BertForSequenceClassification(tf.BertConfig(**BERT, **settings))
    lorica.adapt(made, lorica.Lora(r=2), modules_to_save=["classifier"])
    lorica.save(made, tmp_path / "saved")
    AdapterCallback().on_init_end(None, None, None, model=made)
    made.save_pretrained(tmp_path / "by a Trainer")
    for name in ("saved", "by a Trainer"):
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["labels"] == labels
    assert lorica.save(made, tmp_path / "named", labels=["a", "b", "c"])
    assert json.loads((tmp_path / "named/manifest.json").read_text())["labels"] == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="the name a"):
        lorica.save(made, tmp_path / "wrong", labels=["a", "a", "c"])
    assert not (tmp_path / "wrong").exists()


def test_a_language_model_has_no_classes_whatever_its_config_names(tmp_path):
    made = model("llama", id2label={0: "no", 1: "yes"})
    lorica.save(lorica.adapt(made, lorica.Lora(r=2)), tmp_path / "saved")
    assert json.loads((tmp_path / "saved/manifest.json").read_text())["labels"] is None
