"""Mutated files for every reader: `python tests/fuzz/fuzz.py [--executions N] [--only NAME]`.

Prints a line a reader: how often it ran, how often it refused what it was given, and what it did
that it must not: another error than a FerrumError, more than two seconds, memory that grows. Every
finding has a number with which it is made again: `--only NAME --number N`.
"""

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
for place in (HERE, HERE.parent / "support", HERE.parent / "gptq"):
    sys.path.insert(0, str(place))

import mutating  # noqa: E402
from readers import READERS, Reader, files_of  # noqa: E402, F401

from ferrum_numba.errors import FerrumError  # noqa: E402

# of one file, which has a few kilobytes
MOST_S = 2.0
# of a reader, over all of its executions
MOST_GROWTH_MB = 256
# in memory
ROOM = Path("/dev/shm")
# a finding is told once
SHOWN = 5


def run(name, executions, seed=0):
    """Run a reader; return {"executions", "refused", "findings": {words: [count, number]}, ...}."""
    reader, refused, findings = READERS[name], 0, {}
    root = Path(tempfile.mkdtemp(dir=ROOM if ROOM.is_dir() else None))
    before, began, slowest = memory_mb(), time.monotonic(), 0.0
    try:
        good = files_of(reader, root / "good")
        place = root / "place"
        shutil.copytree(root / "good", place)
        for number in range(executions):
            started = time.process_time()
            try:
                execute(reader, good, place, mutating.random_of(seed, number))
            except FerrumError:
                refused += 1
            except Exception as error:
                note(findings, words_of(error), number)
            took = time.process_time() - started
            slowest = max(slowest, took)
            if took > MOST_S:
                note(findings, "it took more than two seconds", number)
        grown = memory_mb() - before
        if grown > MOST_GROWTH_MB:
            note(findings, f"its memory grew by {grown:.0f} MB", 0)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return {
        "reader": name, "executions": executions, "refused": refused, "findings": findings,
        "slowest_s": round(slowest, 3), "grown_mb": round(grown),
        "seconds": round(time.monotonic() - began),
    }  # fmt: skip


def execute(reader, good, place, rng):
    """Mutate one of the good files, read them, and bring it back."""
    changed = rng.choice(list(reader.mutated))
    (place / changed).write_bytes(reader.mutated[changed](rng, good[changed]))
    try:
        reader.read(place)
    finally:
        (place / changed).write_bytes(good[changed])
        for other in place.iterdir():
            if other.is_file() and other.name not in good:
                other.unlink()


def note(findings, words, number):
    findings.setdefault(words, [0, number])[0] += 1


def words_of(error):
    """Return what tells a finding from others: its type and where it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "ferrum_numba" in frame.filename] or frames
    last = ours[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:120]}"


def memory_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main():
    """Run every reader, or one; 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--only", choices=READERS, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="one execution, with its traceback")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.number is not None:
        folder = Path(tempfile.mkdtemp())
        reader = READERS[args.only[0]]
        good = files_of(reader, folder / "place")
        execute(reader, good, folder / "place", mutating.random_of(args.seed, args.number))
        return 0
    total = Counter()
    for name in args.only or READERS:
        found = run(name, args.executions, args.seed)
        found["findings"] = dict(list(found["findings"].items())[:SHOWN])
        print(json.dumps(found), flush=True)
        total.update(executions=found["executions"], findings=len(found["findings"]))
    print(json.dumps(total))
    return 1 if total["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
