"""lorica key: the key to stderr, lines that can be appended to keys.yaml to stdout."""

from lorica.cli import run
from lorica.serve.keys_file import read_keys


def test_its_output_is_a_file_of_keys(tmp_path, capsys):
    path, keys = tmp_path / "keys.yaml", {}
    for words in (["acme", "--adapter", "alice", "--adapter", "bob"], ["operator", "--admin"]):
        assert run(["key", *words]) == 0
        output = capsys.readouterr()
        [keys[words[0]]] = [word for word in output.err.split() if word.startswith("lorica-")]
        with path.open("a") as file:
            file.write(output.out)
    access, _ = read_keys(path, base_name="bundled")
    for name, key in keys.items():
        assert access.authenticate(f"Bearer {key}").name == name
        assert key not in path.read_text()


def test_a_tenant_that_may_use_nothing_gets_no_key(capsys):
    assert run(["key", "acme"]) == 2
    output = capsys.readouterr()
    assert "acme may use nothing" in output.err and not output.out
