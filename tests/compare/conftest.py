"""A small study that was run once, for the tests of what it leaves behind."""

from pathlib import Path

import pytest

from tests.compare.study_files import fix_costs, run, write_study


@pytest.fixture(scope="session")
def whole_study(tmp_path_factory: pytest.TempPathFactory, small_base: Path):
    """(the study's file, its output, its result), not interrupted."""
    folder = tmp_path_factory.mktemp("study")
    path = write_study(folder, small_base)
    with pytest.MonkeyPatch.context() as patch:
        fix_costs(patch)
        return path, folder / "out", run(path, folder / "out")
