"""Fixtures that every area shares: where the real data is, and one thread a test."""

import os
from pathlib import Path

import pytest
import torch

from tests import small_base as small

# Tests run side by side: more threads would only fight, unless they are asked for.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir() or os.environ.get("LORICA_NO_SHARED"):
        pytest.skip(f"{folder} is not here: this test reads real models and data from it")
    return folder


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """A real pretrained Llama of 260,032 parameters, with grouped queries and a tied head."""
    return shared / "data/models/stories260K"


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random Llama, for tests that need no pretrained model."""
    return small.write(tmp_path_factory.mktemp("small_base"))
