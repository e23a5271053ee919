"""A run that starts from another adapter: its first loss is that adapter's, and no other fits."""

import json
import shutil
from pathlib import Path

import pytest

import lorica
from lorica.errors import ConfigError, FileError
from lorica.formats.open_adapter import open_adapter
from tests.base.classifiers import WORDS, model, save
from tests.training.rows import adapter, same, settings

BASE = Path("bundled")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run of LoRA."""
    folder = tmp_path_factory.mktemp("first")
    return lorica.train(**settings(BASE, folder, max_steps=3), show=False)


def test_the_new_run_begins_where_the_other_ended(first, tmp_path):
    again = lorica.train(
        **settings(BASE, tmp_path, max_steps=1, init_from=str(first.folder)), show=False
    )
    before, after = (r.figures["held_out_loss"] for r in (again, first))
    assert before["before"] == pytest.approx(after["after"], rel=1e-5)
    assert any("begins with the adapter" in line for line in again.notices)
    assert not same(adapter(again.folder), adapter(first.folder))


def test_an_adapter_of_peft_is_a_start(first, tmp_path):
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes((first.folder / "adapter" / name).read_bytes())
    again = lorica.train(
        **settings(BASE, tmp_path / "b", max_steps=1, init_from=str(tmp_path)), show=False
    )
    after = first.figures["held_out_loss"]["after"]
    assert again.figures["held_out_loss"]["before"] == pytest.approx(after, rel=1e-5)


OTHER = {
    "another rank": ({"method": {"name": "lora", "r": 2}}, "other settings"),
    "another alpha": ({"method": {"name": "lora", "r": 4, "alpha": 4.0}}, "8.0 there, 4.0 here"),
    "another method": ({"method": {"name": "dora", "r": 4}}, "an adapter of lora"),
    "other targets": ({"target_modules": ["q_proj"]}, "other targets or ranks"),
    "other ranks": ({"rank_pattern": {"q_proj": 2}}, "other targets or ranks"),
    "other alphas": ({"alpha_pattern": {"q_proj": 2.0}}, "alpha_pattern"),
    "a schedule": ({"method": {"name": "aflora"}, "max_steps": 40}, "has a schedule"),
}


@pytest.mark.parametrize("case", OTHER)
def test_an_adapter_that_does_not_fit_is_refused_with_the_fix(first, tmp_path, case):
    changed, words = OTHER[case]
    with pytest.raises(ConfigError, match=words) as caught:
        lorica.train(**settings(BASE, tmp_path, **changed, init_from=str(first.folder)), show=False)
    assert str(first.folder) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_is_no_adapter_is_named(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        lorica.train(**settings(BASE, tmp_path, init_from="runs/nowhere"), show=False)


def test_dropout_and_the_start_may_differ(first, tmp_path):
    method = {"name": "lora", "r": 4, "dropout": 0.1, "init": "gaussian"}
    lorica.train(
        **settings(BASE, tmp_path, max_steps=1, method=method, init_from=str(first.folder)),
        show=False,
    )


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A base, and a run on it that knows bird, cat and dog."""
    folder = tmp_path_factory.mktemp("classifier")
    base = save(folder / "base", model("bert with pooler"))
    return base, classified(base, folder, ["bird", "cat", "dog"]).folder


def classified(base, folder, labels, **changed):
    folder.mkdir(exist_ok=True)
    rows = [
        {"text": f"{WORDS[i % 13]} a {WORDS[i % 7]}", "label": labels[i % len(labels)]}
        for i in range(26)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lorica.train(**settings(Path(base), folder, max_steps=1, **changed), show=False)


OTHER_CLASSES = {
    "one other": (["ape", "cat", "dog"], "other classes"),
    "one more": (["ape", "bird", "cat", "dog"], "other classes"),
    "one less": (["cat", "dog"], "other classes"),
    "other case": (["Bird", "cat", "dog"], "other classes"),
    "numbers": ([0, 1, 2], "other classes"),
}


@pytest.mark.parametrize("case", OTHER_CLASSES)
def test_a_head_is_not_put_onto_other_classes(classifier, tmp_path, case):
    base, run = classifier
    labels, words = OTHER_CLASSES[case]
    with pytest.raises(ConfigError, match=words) as caught:
        classified(base, tmp_path, labels, init_from=str(run))
    assert "bird, cat, dog" in str(caught.value)
    assert ", ".join(map(str, labels)) in str(caught.value)


def test_a_head_is_not_put_onto_its_classes_in_another_order(classifier, tmp_path):
    base, run = classifier
    other = shutil.copytree(run / "adapter", tmp_path / "adapter")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["labels"] = ["dog", "bird", "cat"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="another order"):
        classified(base, tmp_path, ["bird", "cat", "dog"], init_from=str(other))


def test_the_same_classes_go_on(classifier, tmp_path):
    base, run = classifier
    again = classified(base, tmp_path, ["dog", "bird", "cat"], init_from=str(run))
    before = open_adapter(run).labels
    assert before == open_adapter(again.folder).labels == ["bird", "cat", "dog"]


def test_a_head_whose_classes_have_no_names_must_have_as_many(classifier, tmp_path):
    base, run = classifier
    other = shutil.copytree(run / "adapter", tmp_path / "adapter")
    (other / "manifest.json").unlink()
    again = classified(base, tmp_path, ["ape", "cat", "dog"], init_from=str(other))
    assert any("does not name its classes" in line for line in again.notices)
    with pytest.raises(ConfigError, match="3 classes without names"):
        classified(base, tmp_path / "b", ["cat", "dog"], init_from=str(other))


def test_another_prompt_format_is_noticed(first, tmp_path):
    rows = settings(BASE, tmp_path)["data"]
    plain = lorica.train(
        **settings(BASE, tmp_path, max_steps=1, init_from=str(first.folder)), show=False
    )
    assert not any("was trained with" in line for line in plain.notices)
    rows["prompt_template"] = "Q: {{ prompt }} A:"
    with_notice = lorica.train(
        **settings(
            BASE,
            tmp_path,
            max_steps=1,
            data=rows,
            init_from=str(first.folder),
            output=str(tmp_path / "with_notice"),
        ),
        show=False,
    )
    assert any("trained with plain prompts" in line for line in with_notice.notices)
