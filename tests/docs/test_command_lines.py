"""Every command line that a page shows can be typed: commands, options, modules, targets, tests."""

import re
import shlex
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pages
import pytest

from ferrum_numba import gpu
from ferrum_numba.__main__ import main
from ferrum_numba.cli.app import COMMANDS, parser
from ferrum_numba.kernels import KERNELS, MOE, TOOLS
from ferrum_numba.perf.problems import PROBLEM_SETS

NAMES = {kernel.name for kernel in (*KERNELS, *TOOLS, *MOE)}
LINES = {page: pages.code(page) for page in pages.PAGES}
PAGES = pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
MAKE = re.compile(r"^([a-z][\w-]*):", re.MULTILINE).findall((pages.ROOT / "Makefile").read_text())
# of a name that stands for one of the reader's own
OWN = re.compile(r"my_\w+|[A-Z_]+")


def parsed(words):
    """Return what the parser makes of a command line, or what it says."""
    try:
        return parser().parse_args(words)
    except SystemExit as stopped:
        return f"exit {stopped.code}: ferrum-numba {shlex.join(words)}"


def wrong(words):
    """Return what is wrong with a command line; nothing if it can be typed.

    A command alone is its name.
    """
    if len(words) == 1 and words[0] in COMMANDS:
        return None
    args = parsed(words)
    if isinstance(args, str):
        return args
    # a comparison is of kernels, files or revisions; a list of one's own has names of its own
    elsewhere = args.command == "compare" or args.kernels
    unknown = [] if elsewhere else getattr(args, "kernel", [])
    unknown = [name for name in unknown if name not in NAMES and not OWN.fullmatch(name)]
    if unknown:
        return f"no kernel is named {unknown[0]}"
    problem = str(getattr(args, "problem", None) or "X")
    if "=" not in problem and problem not in PROBLEM_SETS and not OWN.fullmatch(problem):
        return f"no problems are named {problem}"
    return None


@PAGES
def test_commands_can_be_typed(page):
    commands = [words for line in LINES[page] if (words := pages.command(line))]
    assert [said for words in commands if (said := wrong(words))] == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ferrum-numba list    Ops, kernels", ["list"]),
        ("$ ferrum-numba check [KERNEL…]  against it", ["check", "KERNEL"]),
        ("ferrum-numba convert A B --to gptq|awq", ["convert", "A", "B", "--to", "gptq"]),
        ("ferrum-numba why-miss --problem …   what", ["why-miss", "--problem", "X"]),
        ("ferrum-numba tune --plan plan   # here", ["tune", "--plan", "plan"]),
        ("what ferrum-numba does", None),
    ],
)
def test_a_line_is_read(line, words):
    assert pages.command(line) == words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chekc"], "exit 2"),
        (["plan", "--gpus", "h200"], "exit 2"),
        (["plan", "decoed"], "no kernel is named decoed"),
        (["plan", "--problem", "llama4"], "no problems are named llama4"),
    ],
)
def test_a_wrong_line_is_found(words, said):
    assert said in wrong(words)


def test_some_lines_are_found():
    assert sum(bool(pages.command(line)) for lines in LINES.values() for line in lines) > 80


@PAGES
def test_modules_are_there(page):
    named = re.findall(r"python3? -m ([\w.]+)", "\n".join(LINES[page]))
    assert [name for name in named if find_spec(name) is None] == []


@PAGES
def test_targets_are_there(page):
    named = re.findall(r"^make ([a-z][\w-]*)", "\n".join(LINES[page]), re.MULTILINE)
    assert set(named) <= set(MAKE)


def lost_tests(line):
    """Return what a call of pytest names that is not there: files, words of `-k`."""
    words = shlex.split(line.partition("  #")[0])
    paths = [pages.ROOT / word for word in words if word.startswith("tests/")]
    lost = [path.name for path in paths if not path.exists()]
    if "-k" in words:
        wanted = set(re.findall(r"\w+", words[words.index("-k") + 1])) - {"and", "or", "not"}
        lost += sorted(word for word in wanted if word not in sources())
    return lost


@cache
def sources():
    """Return the text of all tests but this: cases have names that other files give them."""
    files = (pages.ROOT / "tests").rglob("*.py")
    return "\n".join(file.read_text() for file in files if file != Path(__file__))


@PAGES
def test_tests_are_there(page):
    lines = [line for line in LINES[page] if re.match(r"(python -m )?pytest ", line)]
    assert [lost for line in lines for lost in lost_tests(line)] == []


def test_a_lost_test_is_found():
    assert lost_tests("pytest tests/none") == ["none"]
    assert lost_tests("pytest tests/ptx -k 'shuffle and nowhere_at_all'") == ["nowhere_at_all"]


def told(shown, printed):
    """Return the lines that a page shows and a command did not print, in their order.

    Of a line the page may leave words out, where `…` stands or between columns.
    """
    rest = iter([line.split() for line in printed.splitlines()])
    lost = []
    for line in shown:
        # a rule is as long as its table is wide
        words = [word for word in line.split() if word.strip("…─")]
        for got in rest:
            at = iter(got)
            if all(word in at for word in words):
                break
        else:
            lost.append(line)
            rest = iter([line.split() for line in printed.splitlines()])
    return lost


def shown():
    """Return every command in a block with what the page shows of its output."""
    calls = []
    for page in pages.RUN_HERE:
        for block in pages.fenced(page):
            # a comment says why, as of a block of Python
            if block.not_run:
                continue
            for call in re.split(r"^\$ (?=ferrum-numba)", block.text, flags=re.MULTILINE)[1:]:
                line, *lines = call.splitlines()
                calls.append(
                    pytest.param(line, [one for one in lines if one.strip()], id=line[13:40])
                )
    return calls


@pytest.mark.skipif(gpu.driver_present(), reason="the pages show a machine without a GPU")
@pytest.mark.parametrize(("line", "lines"), shown())
def test_commands_print_what_is_shown(line, lines, capsys, monkeypatch, tmp_path):
    # what ships need not be compiled
    monkeypatch.delenv("FERRUM_NUMBA_PROGRAMS_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", shlex.split(line))
    main()
    printed = capsys.readouterr()
    assert told(lines, printed.out + printed.err) == []


def test_what_is_not_printed_is_found():
    printed = "kernel  error\ndecode  1.0\n2 of 2 passed\n"
    assert told(["kernel …", "decode 1.0"], printed) == []
    assert told(["decode 2.0", "2 of 3 passed"], printed) == ["decode 2.0", "2 of 3 passed"]
    assert told(["2 of 2 passed", "kernel error"], printed) == ["kernel error"]
