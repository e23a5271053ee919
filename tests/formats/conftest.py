"""A base on disk whose weights the tests know."""

import shutil
from pathlib import Path

import pytest

from tests.laws.bases import small_llama


@pytest.fixture(scope="session")
def base(story_base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    small_llama().save_pretrained(folder)
    for file in story_base.glob("token*"):
        shutil.copy(file, folder)
    return str(folder)
