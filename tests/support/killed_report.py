"""`ferrum-numba report` killed at any time: `python killed_report.py FOLDER ROUNDS SEED`.

Every round forks a process that reports beside a GPU that is made up, writing anew at every row,
and kills it after a while; what is there must be a whole report. Then one version is written over
another by processes that are killed before each of its files in turn. Prints a line of JSON: how
many were killed, which reports they left, and what was broken.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from synthetic import Page, contents
from toy_kernel import Config, Problem, Toy, make_binary

from ferrum_numba import cli, gpu, tune, whole
from ferrum_numba.cli import refining
from ferrum_numba.report import Document, Writer
from ferrum_numba.report.drawing import Drawer
from ferrum_numba.results import load
from ferrum_numba.tune.search import SearchTask, search
from ferrum_numba.tune.worker import Outcome

H200 = replace(gpu.KNOWN["h200"], source="live", uuid="GPU-here")
CONFIGS, PROBLEMS = 4, tuple(Problem(m) for m in (1, 2, 4, 8))
# as long as a picture is, so that its writing takes a while
PICTURE = "<svg>" + "<path/>" * 10_000 + "</svg>"


class Some(Toy):
    space = tuple(Config(speed) for speed in range(1, CONFIGS + 1))


class Quick:
    """Measures in no time."""

    def run(self, candidate, best_us):
        us = float(10 + candidate.config.speed)
        return Outcome("measured", us=(us,) * 9, rotated=True)

    def round(self, candidates, turn, samples):
        return None


def made_up(kernels, problems, facts, *, policy, store_path, progress, **rest):
    binaries = {(k.name, config): make_binary() for k in kernels for config in k.space}
    for name in ("timeout_s", "plan"):
        rest.pop(name, None)
    task = SearchTask(kernels, problems, facts, policy, store_path, **rest)
    return search(task, Quick(), progress, binaries=binaries)


def draw(_, picture):
    return f"{PICTURE[:-6]}<text>{len(json.dumps(picture.data))}</text></svg>", b"png" * 30_000


def pretend():
    """Have a GPU, pictures that cost nothing, and a report that is always due."""
    gpu.driver_present, gpu.live, tune.tune = lambda: True, lambda index=0: H200, made_up
    refining.EVERY_S, refining._quick_plan = 0.0, lambda refining: []
    Drawer.draw = draw


def reported(folder, store):
    """Report from a store that is empty; return the status."""
    (folder / store).mkdir(exist_ok=True)
    words = [
        "report",
        "--problem",
        "all",
        "--store",
        str(folder / store),
        "--out",
        str(folder / "r"),
    ]
    return cli.main((Some(),), {"all": PROBLEMS}, words)


def forget():
    """Be as a new process is, which looks for what dead ones left."""
    whole._swept.clear()


def after_a_kill(task, seconds=None):
    """Return whether a process with a task was killed after so long; else it came to its end."""
    forget()
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        task()
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def broken(folder):
    """Return what is wrong with a report; nothing where none was begun."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if "report.html" not in names:
        return []
    wrong = []
    parser = Page()
    parser.feed((folder / "report.html").read_text())
    if parser.open or parser.wrong:
        wrong.append("report.html")
    for name in names:
        if name.endswith(".json"):
            json.loads((folder / name).read_text())
    if "report.md" in names:
        text = (folder / "report.md").read_text()
        wrong += [found for found in _pictures(text) if found not in names]
    if "report.json" in names:
        Document.load(folder / "report.json")
    return wrong


def _pictures(markdown):
    return [part.partition(")")[0] for part in markdown.split("](")[1:]]


def problems_in(folder):
    """Return how many problems a report has times of; None without a report."""
    if not (folder / "report.json").exists():
        return None
    tables = Document.load(folder / "report.json").blocks
    found = [t for t in tables if getattr(t, "title", "").startswith("Fastest of each problem")]
    return len(found[0].rows) if found else 0


def at_random(folder, rounds, rng):
    """Kill at random times; return how many were killed, what reports had, and what was broken."""
    # here, so that what is imported late is there in all of them
    reported(folder, "here")
    began = time.monotonic()
    after_a_kill(lambda: reported(folder, "first"))
    whole_s = time.monotonic() - began
    count, seen, wrong = 0, [], broken(folder / "r")
    for i in range(rounds):
        report = rng.choice((True, False)) and folder / "r"
        # now and then there is no report to begin with
        for path in [*report.iterdir()] if report and report.exists() else ():
            path.unlink()
        count += after_a_kill(lambda i=i: reported(folder, f"s{i}"), rng.uniform(0, whole_s))
        wrong += broken(folder / "r")
        seen.append(problems_in(folder / "r"))
        for path in (folder / f"s{i}").glob("h200/*.json"):
            load(path)
    return count, seen, wrong


def between(folder):
    """Kill before each file in turn; return how many times, and what was broken."""
    before = Document.load(folder / "first.json")
    after = Document.load(folder / "last.json")
    wrong, count = [], 0
    while True:
        where = folder / f"b{count}"
        Writer(where).write(before)
        left = [count]

        def task(where=where, left=left):
            plain = os.replace

            def kill(one, other):
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return plain(one, other)

            os.replace = kill
            Writer(where).write(after)

        if not after_a_kill(task):
            return count, wrong
        wrong += broken(where)
        html = (where / "report.html").read_text()
        wrong += [] if html in (_html(before), _html(after)) else [f"report.html after {count}"]
        # the next one takes away what the killed one left
        forget()
        Writer(where).write(after)
        wrong += [path.name for path in where.iterdir() if path.name.startswith(".")]
        count += 1


def _html(document):
    svgs = {picture.name: draw(None, picture)[0] for picture in document.pictures}
    from ferrum_numba.report import html

    return html.render(document.title, document.blocks, svgs)


def main(folder, rounds, seed):
    """Kill and count."""
    pretend()
    count, seen, wrong = at_random(folder, rounds, random.Random(seed))
    forget()
    status = reported(folder, "last")
    kept = contents((folder / "r").iterdir())
    (folder / "last.json").write_text(kept["report.json"])
    last = Document.load(folder / "last.json")
    first = replace(last, blocks=last.blocks[:3])
    (folder / "first.json").write_text(json.dumps(first.to_json()))
    steps, more = between(folder)
    found = {
        "killed": count, "seen": seen, "broken": wrong + more, "steps": steps, "status": status,
        "files": len(kept), "left": [name for name in kept if name.startswith(".")],
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
