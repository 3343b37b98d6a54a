"""The examples of pages, run once for all that look at what came of them."""

from functools import cache
from pathlib import Path

import page_runs
import pages
import pytest


@pytest.fixture(scope="session")
def ran(tmp_path_factory):
    """Return a function that runs a page's examples, if it did not yet: page -> (names, folder)."""

    @cache
    def run(page: Path):
        folder = tmp_path_factory.mktemp(page.stem)
        blocks = [
            block for block in pages.fenced(page, "python")
            if not block.part_of and not block.not_run
        ]  # fmt: skip
        with pytest.MonkeyPatch.context() as patch, page_runs.importable(folder):
            # an example waits for no compiler where a program ships
            patch.delenv("FERRUM_NUMBA_PROGRAMS_DIR", raising=False)
            patch.chdir(folder)
            return page_runs.run(blocks, folder), folder

    return run
