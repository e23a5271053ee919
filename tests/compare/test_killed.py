"""A study whose process is killed, again and again, comes to the result of one that was not."""

import multiprocessing
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from lorica.compare.assemble import study_result
from lorica.compare.records import RECORDS, Records
from tests.compare.study_files import fix_costs, run, without_costs, write_study
from tests.marks import at_length

SITTINGS = ((0.15, 0.3, 0.45, 0.6, 0.3), (0.25, 0.1, 0.5, 0.2, 0.4))
"""When the sittings of a study are killed, as shares of the time that the whole study takes."""
PRELOADED = ["tests.compare.study_files", "transformers.models.llama.modeling_llama"]


def sitting(path: Path, output: Path) -> None:
    """The whole study, or the rest of it: the work of a process of its own."""
    fix_costs(pytest.MonkeyPatch())
    run(path, output, resume=(output / RECORDS).exists())


def start(path: Path, output: Path) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=sitting, args=(path, output))
    process.start()
    return process


@pytest.mark.slow
def test_a_study_killed_again_and_again_comes_to_the_same_result(small_base: Path, tmp_path: Path):
    path, whole = write_study(tmp_path / "study", small_base), tmp_path / "whole"
    start(path, tmp_path / "first").join()  # it starts the server of processes
    began = time.monotonic()
    start(path, whole).join()
    seconds, kills = time.monotonic() - began, 0
    for chain, shares in enumerate(SITTINGS[: at_length(2, 1)]):
        output = tmp_path / f"killed-{chain}"
        for share in shares:
            process = start(path, output)
            process.join(share * seconds)
            kills += process.is_alive()
            process.kill()
            process.join()
        start(path, output).join()
        assert without_costs(study_result(output)) == without_costs(study_result(whole))
        assert len(Records(output).of("final")) == 4
    assert kills >= at_length(5, 2)
