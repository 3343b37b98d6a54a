"""The page says what is read of which exporter's checkpoints, as it was just tried."""

import checkpoint_table
import pytest


def test_the_page_has_the_table_of_now():
    page = checkpoint_table.PAGE.read_text()
    assert checkpoint_table.with_table(page, checkpoint_table.table()) == page


@pytest.mark.parametrize("case", checkpoint_table.CASES, ids=lambda c: f"{c.exporter}: {c.format}")
def test_every_case_is_right_or_refused_in_a_sentence(case, rng):
    said = checkpoint_table.outcome(case, rng)
    assert (said == "right") == case.read
    assert "\n" not in said
