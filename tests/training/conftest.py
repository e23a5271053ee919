"""A run that was interrupted, for the tests of what may change before it is resumed."""

import pytest

import lorica
from tests.training.rows import adapter, interrupt, settings, tiny_base


@pytest.fixture(scope="session")
def cut(tmp_path_factory):
    """(a folder with base, rows and a run that was cut at step 5, the adapter of a whole run)."""
    root = tmp_path_factory.mktemp("cut")
    plain = settings(tiny_base(root / "base"), root, save_steps=2)
    whole = lorica.train(**{**plain, "output": str(root / "whole")}, show=False)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 5, **plain)
    return root, adapter(whole.folder)
