"""Rules of the package: who may import whom, how large files grow, what is never called."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src/lorica"
FILES = sorted(p for p in ROOT.rglob("*.py"))
FLOORS = [  # lowest first; CONTRIBUTING.md shows this list, and a test holds the two equal
    {"errors", "registry", "plain_files", "strict_json", "progress"},
    {"core"},
    {"kernels"},
    {"methods", "inits"},
    {"recipe", "data"},
    {"base"},
    {"formats"},
    {"generation"},
    {"evaluation"},
    {"training"},
    {"plan", "compare", "serve", "handover"},
    {"cli", "__main__"},
]
LIGHT = {"core", "methods", "inits", "kernels"}  # know torch, and nothing else that is heavy
HEAVY = {"transformers", "datasets", "accelerate", "tokenizers", "matplotlib", "bitsandbytes"}
MAX_LINES, MAX_LINES_OF_METHOD, MAX_LINES_OF_FUNCTION = 300, 200, 60
RIDDLES = {"found", "told", "some", "said", "heard", "made", "shown", "there"}
"""Names that do not say what they hold."""
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


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def floor(part: str) -> int:
    numbers = [number for number, names in enumerate(FLOORS) if part in names]
    assert numbers, f"{part!r} has no floor: write it into FLOORS"
    return numbers[0]


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Every import of a file: at module level, inside functions and for type checkers alone."""
    return [n for n in ast.walk(tree(path)) if isinstance(n, ast.Import | ast.ImportFrom)]


def imports_at_start(body: list[ast.stmt]) -> list[ast.Import | ast.ImportFrom]:
    """Imports that run when the module is imported: not those of functions or TYPE_CHECKING."""
    nodes: list[ast.Import | ast.ImportFrom] = []
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            nodes.append(node)
        elif isinstance(node, ast.If):
            checking = "TYPE_CHECKING" in ast.unparse(node.test)
            nodes += imports_at_start(node.orelse if checking else node.body + node.orelse)
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            nodes += imports_at_start(node.body)
    return nodes


def modules(nodes: list[ast.Import | ast.ImportFrom]) -> list[tuple[int, str]]:
    """(line, dotted module) of each import; `from lorica.core import x` is lorica.core.x if that
    is a module."""
    names: list[tuple[int, str]] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
            continue
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            names.append((node.lineno, whole if whole in FILE_OF else node.module or ""))
    return names


def module_of(path: Path) -> str:
    parts = ("lorica", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILE_OF = {module_of(path): path for path in FILES}


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring and the help texts in its signature."""

    def lines(node: ast.AST) -> int:
        return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]

    arguments = [*function.args.args, *function.args.kwonlyargs]
    helps = [a.annotation for a in arguments if "Parameter" in ast.unparse(a.annotation or a)]
    docstring = function.body[:1] if ast.get_docstring(function) else []
    return lines(function) - sum(lines(node) for node in [*docstring, *filter(None, helps)])


def names_of(path: Path) -> list[tuple[int, str]]:
    """(line, name) of every variable, argument, function and class of a file."""
    names: list[tuple[int, str]] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name):
            names.append((node.lineno, node.id))
        elif isinstance(node, ast.arg):
            names.append((node.lineno, node.arg))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append((node.lineno, node.name))
    return names


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def imports_only_point_down(path: Path) -> None:
    """Those inside functions and for type checkers too."""
    if path == ROOT / "__init__.py":
        return
    assert not any(getattr(n, "level", 0) for n in ast.walk(tree(path))), "no relative imports"
    here = floor(part_of(path))
    for line, name in modules(imports(path)):
        if name.startswith("lorica.") and not name.startswith("lorica.__"):
            assert floor(name.split(".")[1]) <= here, f"line {line}: {name} lies above"


def test_no_modules_import_one_another_in_a_circle():
    """Those inside functions and for type checkers too. The root imports all public names."""
    graph = {
        name: {n for _, n in modules(imports(path)) if n in FILE_OF} - {name, "lorica"}
        for name, path in FILE_OF.items()
        if name != "lorica"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_contributing_shows_the_floors():
    page = (ROOT.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = page.split("<!-- floors -->")[1].split("<!-- end -->")[0].strip().splitlines()[2:]
    floors = [set(row.split("|")[1].replace("`", "").split()) for row in rows]
    assert floors == [names - {"__main__"} for names in FLOORS]


def the_core_knows_torch_alone(path: Path) -> None:
    everywhere = {name.split(".")[0] for _, name in modules(imports(path))}
    at_start = {name.split(".")[0] for _, name in modules(imports_at_start(tree(path).body))}
    if part_of(path) in LIGHT:
        assert everywhere <= set(sys.stdlib_module_names) | {"torch", "lorica"}
    elif part_of(path) in FLOORS[0] | {"__init__"}:
        assert at_start <= set(sys.stdlib_module_names) | {"lorica"}
    elif path.name == "config.py":
        assert not at_start & (HEAVY | {"torch"}), "settings are read before heavy imports"


def files_and_functions_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (MAX_LINES_OF_METHOD if part_of(path) == "methods" else MAX_LINES)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert lines_of(node) <= MAX_LINES_OF_FUNCTION, (
                f"{node.name} has {lines_of(node)} lines"
            )


def nothing_runs_what_it_reads(path: Path) -> None:
    for line, name in modules(imports(path)):
        assert name.split(".")[0] not in FORBIDDEN_MODULES, f"line {line}"
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        assert called(node) not in FORBIDDEN_CALLS, f"line {node.lineno}: {called(node)}"
        for keyword in node.keywords:
            if keyword.arg == "trust_remote_code":
                assert ast.unparse(keyword.value) == "False", f"line {node.lineno}"


def files_of_a_folder_are_opened_in_one_place(path: Path) -> None:
    """Opening elsewhere would follow a link that someone put into a run or an adapter."""
    if part_of(path) not in {"formats", "training", "evaluation"}:
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and called(node).rpartition(".")[2] in OPENING:
            assert called(node).startswith(("plain_files.", "commit.")) or (
                path.name == "commit.py" and called(node) in WITHIN_COMMIT
            ), f"line {node.lineno}: {called(node)}"


def names_say_what_they_hold(path: Path) -> None:
    assert not {"utils", "helpers", "common", "misc"} & set(path.relative_to(ROOT).parts)
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    if path.stat().st_size:
        assert ast.get_docstring(tree(path)), "a module says what it is for"
    for line, name in names_of(path):
        assert name not in RIDDLES, f"line {line}: {name!r} does not say what it holds"


def no_class_has_two_parents(path: Path) -> None:
    """No mixins. An error of ours may also be the builtin error that it refines."""
    if path.name == "errors.py":
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            assert len(node.bases) <= 1, f"line {node.lineno}: {node.name}"


CHECKS = (
    imports_only_point_down,
    the_core_knows_torch_alone,
    files_and_functions_stay_small,
    nothing_runs_what_it_reads,
    files_of_a_folder_are_opened_in_one_place,
    names_say_what_they_hold,
    no_class_has_two_parents,
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_keeps_the_rules(path):
    for check in CHECKS:
        check(path)


def test_what_must_not_pass_does_not(tmp_path):
    """The checks above see what they are meant to see."""
    code = tmp_path / "code.py"
    code.write_text("import pickle\ntorch.load(x)\nif True:\n    from lorica.cli import main\n")
    assert [name for _, name in modules(imports(code))] == ["pickle", "lorica.cli"]
    calls = [called(n) for n in ast.walk(tree(code)) if isinstance(n, ast.Call)]
    assert calls == ["torch.load"] and len(FILES) > 20
    with pytest.raises(AssertionError, match="no floor"):
        floor("attic")
    assert floor("core") < floor("methods") < floor("formats") < floor("training") < floor("cli")


def test_every_public_name_is_there_and_sorted():
    import lorica

    assert lorica.__all__ == sorted(lorica.__all__)
    assert set(lorica._HOMES) == set(lorica.__all__)
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
