"""Results as HTML and as text: one place, where every text is escaped."""

import pytest

from ferrum_numba.check import Checked
from ferrum_numba.shown import (
    MOST_ROWS,
    Drawing,
    Facts,
    Grid,
    Sentences,
    as_html,
    as_text,
    differences,
    number,
    shared,
)

# harmless names that would be more than text if they were not escaped
HOSTILE = "<script>a&b</script>"
ESCAPED = "&lt;script&gt;a&amp;b&lt;/script&gt;"


@pytest.mark.parametrize(
    "part",
    [
        Grid(HOSTILE, (HOSTILE,), ((HOSTILE,),)),
        Facts(HOSTILE, {HOSTILE: HOSTILE}),
        Sentences((HOSTILE, HOSTILE, HOSTILE)),
    ],
)
def test_every_text_is_escaped(part):
    html = as_html([part])
    assert "<script>" not in html
    assert html.count(ESCAPED) == 3


def test_tables_say_what_is_a_head():
    html = as_html([Grid("t", ("a", "empty", "b"), (("1", "", "x"), ("22", "", "y")))])
    assert html == (
        '<table><caption>t</caption><thead><tr><th scope="col">a</th><th scope="col">b</th></tr>'
        "</thead><tbody><tr><td>1</td><td>x</td></tr><tr><td>22</td><td>y</td></tr></tbody></table>"
    )
    assert as_html([Facts("", {"n": "v\n<w>", "no": ""})]) == (
        '<table><tbody><tr><th scope="row">n</th><td style="text-align:left">v<br>&lt;w&gt;</td>'
        "</tr></tbody></table>"
    )
    assert as_text([Facts("", {"n": "v\nw"})]) == "  n  v; w"


def test_text_has_columns_and_no_control_characters():
    text = as_text(
        [
            Grid("t", ("name", "n"), (("a\x1b[31m", "1"), ("b", "22"))),
            Sentences(("one", "x" * 5)),
            Drawing("<svg/>", "a picture"),
        ]
    )
    assert text == (
        "t\n  name        n\n  a\\x1b[31m   1\n  b          22\n\none\nxxxxx\n\na picture"
    )
    assert as_text([Drawing("<svg/>")]) == ""


def test_of_many_rows_both_ends_are_shown():
    rows = tuple((str(i),) for i in range(MOST_ROWS + 7))
    html, text = as_html([Grid("", ("i",), rows)]), as_text([Grid("", ("i",), rows)])
    assert html.count("<tr>") == 1 + MOST_ROWS + 1
    assert '<td colspan="1">7 rows more</td>' in html
    assert "  … 7 rows more" in text.splitlines()[1 + MOST_ROWS // 2]
    for shown in ("0", str(MOST_ROWS + 6)):
        assert f"<td>{shown}</td>" in html


def test_of_a_config_there_is_what_differs():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3}) == "b=2"
    assert differences({"a": 1}, {"a": 1}) == "default"
    assert differences({}, {"a": 1}) == ""
    assert shared([{"a": 1, "b": 2}, {"a": 1, "b": 3}]) == {"a": 1}
    assert shared([{"a": 1}]) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        (3, "3"),
        (0.0, "0"),
        (12345.6, "1.235e+04"),
        (2e-4, "2.0e-04"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_a_check_says_its_outcome_and_not_how_long_it_took():
    found = Checked(False, 0.5, float("inf"), f"got {HOSTILE}", "interpreter", 12.5)
    assert "12.5" not in found._repr_html_() + str(found)
    assert ESCAPED in found._repr_html_()
    assert str(found).startswith("failed\n  how")


class Printer:
    """Stands for IPython's."""

    def __init__(self):
        self.printed = ""

    def text(self, text):
        self.printed += text


def test_a_terminal_of_ipython_prints_the_text():
    found, printer = Checked(True, 1e-4, 1e-4, "", "interpreter", 1.0), Printer()
    found._repr_pretty_(printer, False)
    assert printer.printed == str(found)
