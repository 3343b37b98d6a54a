"""The compiler, and the processes that it runs in."""

import pytest


@pytest.fixture(autouse=True)
def _compiles_here():
    """Leave the processes of `build_many` to these tests, whose subject they are."""
