"""Fixtures that every area shares: where the real data is, and one thread a test."""

import gc
import os
from pathlib import Path

import pytest
import torch

from tests import small_base as small
from tests import story_base as story

# Tests run side by side: more threads would only fight, unless they are asked for.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


MISSING = ("is not here", "could not import")  # in the reasons of skips that more files would end


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """LORICA_MAX_SKIPPED: the share of tests that may skip because something is missing; CI asks
    for 0 where everything is there."""
    limit = os.environ.get("LORICA_MAX_SKIPPED")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if limit is None or reporter is None or "PYTEST_XDIST_WORKER" in os.environ:
        return
    count = sum(len(reporter.stats.get(key, ())) for key in ("passed", "failed", "skipped"))
    reasons = [report.longrepr[2] for report in reporter.stats.get("skipped", ())]
    missing = [reason for reason in reasons if any(words in reason for words in MISSING)]
    share = len(missing) / max(count, 1)
    reporter.write_line(
        f"\n{len(missing)} of {count} tests skip for something missing ({share:.1%})"
    )
    if share > float(limit):
        for reason in sorted(set(missing)):
            reporter.write_line(f"{missing.count(reason)} x {reason}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


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


@pytest.fixture(scope="session")
def story_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama with the sizes of `stories`, for tests that count its layers."""
    return story.write(tmp_path_factory.mktemp("story_base"))


def pytest_collection_finish() -> None:
    """Every full collection of garbage would pass over all that is imported and collected by now:
    accelerate alone runs one at the end of each training."""
    gc.collect()
    gc.freeze()
