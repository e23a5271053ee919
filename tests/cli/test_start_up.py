"""Help and most mistakes are answered without torch: asked of fresh processes."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "datasets", "matplotlib", "accelerate", "peft", "pandas"}


def modules_after(code: str) -> tuple[int, set[str]]:
    """The exit status of `code` in a fresh interpreter, and the modules that it imported."""
    probe = (
        "import sys, json, atexit\n"
        "sys.argv = ['lorica']\n"
        "atexit.register(lambda: print('\\n' + json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe + code], capture_output=True, text=True, timeout=60
    )
    return done.returncode, set(json.loads(done.stderr.splitlines()[-1]))


def command(words: str) -> str:
    return f"sys.argv += {words.split()!r}\nfrom lorica.cli import main\nmain()"


def test_import_lorica_is_light():
    code, modules = modules_after("import lorica; lorica.__version__")
    assert code == 0
    assert not modules & (HEAVY | {"pydantic", "rich", "numpy", "yaml", "cyclopts"})


def test_help_imports_no_command():
    code, modules = modules_after(command("--help"))
    assert code == 0
    assert not modules & (HEAVY | {"pydantic", "numpy", "yaml"})
    assert not any(name.startswith("lorica.cli.t") for name in modules)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("train --help", 0),
        ("eval --help", 0),
        ("merge --help", 0),
        ("methods", 0),
        ("methods dora --json", 0),
        ("info .", 6),
        ("trian", 2),
        ("train nowhere.yaml", 2),
        ("train --data x --learning_rat 1", 2),
        ("train a.yaml b.yaml", 2),
        ("generate", 2),
    ],
)
def test_no_torch_for(words, status):
    code, modules = modules_after(command(words))
    assert code == status
    assert not modules & HEAVY
