"""The shape of the package: who may import whom, how large things grow, and what is never used."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src/lorica"
FILES = sorted(p for p in ROOT.rglob("*.py"))
FLOORS = [  # lowest first; a module imports at module level from its own floor or below
    {"errors", "registry", "plain_files", "strict_json", "progress"},
    {"core"},
    {"methods", "inits", "kernels"},
    {"base", "data", "formats", "recipe"},
    {"generation"},
    {"training", "evaluation"},
    {"plan", "compare", "serve"},
    {"cli", "__main__"},
]
LIGHT = {"core", "methods", "inits", "kernels"}  # know torch, and nothing else that is heavy
HEAVY = {"transformers", "datasets", "accelerate", "tokenizers", "matplotlib", "bitsandbytes"}
MOST_LINES, MOST_IN_A_METHOD, MOST_IN_A_FUNCTION = 350, 220, 100
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "numpy.load",
    "np.load",
    "pd.read_pickle",
}
OPENING = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "savetxt", "touch"}
WITHIN_COMMIT = {"write_text", "write_bytes", "os.open"}  # its own; and to sync, with O_NOFOLLOW
each = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def floor(part: str) -> int:
    found = [number for number, names in enumerate(FLOORS) if part in names]
    assert found, f"{part!r} has no floor: write it into FLOORS"
    return found[0]


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def at_module_level(body: list[ast.stmt]) -> list[ast.Import | ast.ImportFrom]:
    """Imports that run when the module is imported: not those of functions or TYPE_CHECKING."""
    found = []
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif isinstance(node, ast.If):
            checking = "TYPE_CHECKING" in ast.unparse(node.test)
            found += at_module_level(node.orelse if checking else node.body + node.orelse)
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            found += at_module_level(node.body)
    return found


def modules(nodes: list[ast.Import | ast.ImportFrom]) -> list[tuple[int, str]]:
    """(line, dotted name) of each; `from lorica import x` counts as lorica.x."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif node.module in ("lorica", "lorica.formats"):
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        else:
            found.append((node.lineno, node.module or ""))
    return found


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def test_there_are_files():
    assert len(FILES) > 20


@each
def test_imports_only_point_down(path):
    if path == ROOT / "__init__.py":
        return
    assert not any(getattr(n, "level", 0) for n in ast.walk(tree(path))), "no relative imports"
    here = floor(part_of(path))
    for line, name in modules(at_module_level(tree(path).body)):
        if name.startswith("lorica.") and not name.startswith("lorica.__"):
            assert floor(name.split(".")[1]) <= here, f"line {line}: {name} lies above"


@each
def test_the_core_knows_torch_alone(path):
    names = {name.split(".")[0] for _, name in modules(at_module_level(tree(path).body))}
    if part_of(path) in LIGHT:
        assert not names & HEAVY
        assert names <= set(sys.stdlib_module_names) | {"torch", "lorica"}
    elif part_of(path) in FLOORS[0] | {"__init__"}:
        assert names <= set(sys.stdlib_module_names) | {"lorica"}
    elif path.name == "config.py":
        assert not names & (HEAVY | {"torch"}), "settings are read before anything heavy is loaded"


@each
def test_files_and_functions_stay_small(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (MOST_IN_A_METHOD if path.parent.name == "methods" else MOST_LINES)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MOST_IN_A_FUNCTION, f"{node.name} has {length} lines"


@each
def test_nothing_runs_what_it_reads(path):
    nodes = list(ast.walk(tree(path)))
    imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
    for line, name in modules(imports):
        assert name.split(".")[0] not in FORBIDDEN_MODULES, f"line {line}"
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        assert called(node) not in FORBIDDEN_CALLS, f"line {node.lineno}: {called(node)}"
        for keyword in node.keywords:
            if keyword.arg == "trust_remote_code":
                assert ast.unparse(keyword.value) == "False", f"line {node.lineno}"


@each
def test_files_of_a_folder_are_opened_in_one_place(path):
    """Opening elsewhere would follow a link that someone put into a run or an adapter."""
    if part_of(path) not in {"formats", "training", "evaluation"}:
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and called(node).rpartition(".")[2] in OPENING:
            assert called(node).startswith(("plain_files.", "commit.")) or (
                path.name == "commit.py" and called(node) in WITHIN_COMMIT
            ), f"line {node.lineno}: {called(node)}"


@each
def test_names_say_what_they_hold(path):
    assert not {"utils", "helpers", "common", "misc"} & set(path.relative_to(ROOT).parts)
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    if path.stat().st_size:
        assert ast.get_docstring(tree(path)), "a module says what it is for"


@each
def test_no_class_has_two_parents(path):
    """No mixins. An error of ours may also be the builtin error that it refines."""
    if path.name == "errors.py":
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            assert len(node.bases) <= 1, f"line {node.lineno}: {node.name}"


def test_what_must_not_pass_does_not(tmp_path):
    """The checks above see what they are meant to see."""
    code = tmp_path / "code.py"
    code.write_text("import pickle\ntorch.load(x)\nif True:\n    from lorica.cli import main\n")
    found = [name for _, name in modules(at_module_level(tree(code).body))]
    assert found == ["pickle", "lorica.cli"]
    calls = [called(n) for n in ast.walk(tree(code)) if isinstance(n, ast.Call)]
    assert calls == ["torch.load"]
    with pytest.raises(AssertionError, match="no floor"):
        floor("attic")
    assert floor("core") < floor("methods") < floor("formats") < floor("training") < floor("cli")


def test_every_public_name_is_there_and_sorted():
    import lorica

    assert lorica.__all__ == sorted(lorica.__all__)
    assert set(lorica._HOMES) == set(lorica.__all__) == set(dir(lorica))
    for name, home in lorica._HOMES.items():
        if (ROOT / f"{home.replace('.', '/')}.py").is_file():
            assert getattr(lorica, name).__module__ == f"lorica.{home}"
    with pytest.raises(AttributeError, match="no_such_name"):
        lorica.no_such_name  # noqa: B018


def test_type_checkers_and_the_machine_see_the_same_names():
    body = next(n for n in tree(ROOT / "__init__.py").body if isinstance(n, ast.If)).body
    seen = {a.name: n.module for n in body if isinstance(n, ast.ImportFrom) for a in n.names}
    import lorica

    assert {name: f"lorica.{home}" for name, home in lorica._HOMES.items()} == seen


@pytest.mark.parametrize(
    "line",
    [
        "import lorica",
        "import lorica.cli",
        "import lorica.errors, lorica.registry",
        "from lorica import LoricaError",
    ],
)
def test_starting_loads_nothing_heavy(line):
    code = f"import sys; {line}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & (HEAVY | {"torch", "numpy", "peft"})


def test_a_method_is_found_by_its_file_name():
    from lorica.core.adapter import Method

    files = {p.stem for p in (ROOT / "methods").glob("*.py")} - {"__init__"}
    files |= {p.parent.name for p in (ROOT / "methods").glob("*/__init__.py")}
    assert "hyperlora" in files, "a method may be a folder"
    assert files <= set(Method.names())
    for name in files:
        assert Method.named(name).name == name
