"""The benchmark of first tokens runs on the real engine, and shows the contrast."""

import asyncio
import re

import pytest

from benchmarks.serve import fairness_live
from lorica.serve.build import EngineSettings, open_engine


@pytest.mark.slow
def test_every_kind_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(fairness_live, "MANY", 12)
    monkeypatch.setattr(fairness_live, "ANSWER", (2, 4))
    engine = open_engine("bundled", EngineSettings(slots=2, max_length=512))
    engine.start()
    try:
        asyncio.run(fairness_live.compare(engine, 1))
    finally:
        engine.close()
    printed = capsys.readouterr().out
    assert len(re.findall(r"^(?:alone|beside 12|  as one more) .*\d+\.\d", printed, re.M)) == 5
