"""Fixtures of these tests."""

import pytest
from torch import nn

from tests.laws.bases import move
from tests.methods.hyperlora.driving import made


@pytest.fixture
def moved() -> nn.Module:
    return move(made(), size=0.3)
