"""The tuner's working memory: every row that was measured, committed before the next one is.

One SQLite database beside the result files of a GPU. Any number of processes write to it: its
journal is a write-ahead log. A row of another board, driver, policy or program stands beside the
others, where a result file has one row a key. A killed process loses nothing that it committed; a
power cut may cost the last seconds, never the database.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ferrum_numba import door
from ferrum_numba.errors import StoreError
from ferrum_numba.results.file import ResultFile, load, plain, save
from ferrum_numba.results.identity import compares, differences, identity
from ferrum_numba.results.row import Row, as_text
from ferrum_numba.results.validate import row_error, run_error

NAME = "tuning.sqlite"
SCHEMA = 1
# another writer may be writing a result file, under the same lock
BUSY_S = 60.0
TABLES = """
CREATE TABLE runs (
    -- in the order that they began, whatever the clocks of their machines say
    place INTEGER PRIMARY KEY, date TEXT UNIQUE NOT NULL, environment TEXT NOT NULL
);
CREATE TABLE rows (
    -- the higher, the newer
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    about TEXT NOT NULL, identity TEXT NOT NULL, board TEXT NOT NULL,
    op TEXT NOT NULL, run TEXT NOT NULL REFERENCES runs (date), content TEXT NOT NULL,
    UNIQUE (about, identity, board)
);
CREATE INDEX of_op ON rows (op);
"""
_INSERT = (
    "INSERT OR REPLACE INTO rows (about, identity, board, op, run, content) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)
_FOUND = "SELECT content, environment FROM rows JOIN runs ON run = date WHERE "


class Store:
    """An open database; may be used from several threads."""

    def __init__(self, path: str | Path) -> None:
        """Open a database, made if it is not there.

        Raises:
            StoreError: it cannot be opened, or is none of ours.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        with self._said():
            # transactions are begun and ended below, not by the module's guesses
            self._database = sqlite3.connect(
                self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                # of one moment: another process may be making the tables
                self._database.execute("BEGIN")
                self._refuse_others()
                self._refuse_damage()
                self._database.execute("COMMIT")
                self._write_ahead()
                self._database.execute("PRAGMA synchronous = NORMAL")
                self._make_tables()
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def begin(self, environment: Mapping[str, Any]) -> dict[str, Any]:
        """Return a run's environment under a date of its own: rows name their run by it."""
        with self._transaction() as database:
            date = environment["date"]
            while database.execute("SELECT 1 FROM runs WHERE date = ?", (date,)).fetchone():
                date = _later(date)
            found = {**environment, "date": date}
            self._keep_run(found)
        return found

    def add(self, rows: Iterable[Row], environment: Mapping[str, Any]) -> None:
        """Commit rows, in place of those of the same board, program, driver and policy.

        Args:
            environment: of this run; rows that name an earlier run of the store count as its

        Raises:
            StoreError: the disk is full or the folder cannot be written.
        """
        with self._transaction():
            self._keep_run(environment)
            self._insert(rows, [environment])

    def runs(self) -> list[dict[str, Any]]:
        """Return the environments of all runs, in the order that they began."""
        with self._said(), self._lock:
            found = self._database.execute("SELECT environment FROM runs ORDER BY place").fetchall()
            return [_environment(text) for (text,) in found]

    def rows(self, op: str) -> list[Row]:
        """Return the newest row of every key and board of an Op, the oldest first."""
        newest = "rows.place IN (SELECT max(place) FROM rows WHERE op = ? GROUP BY about, board)"
        return [row for row, _ in self._rows(f"{newest} ORDER BY rows.place", op)]

    def known(self, wanted: Row, environment: Mapping[str, Any]) -> Row | None:
        """Return the row that answers for a wanted one, or None.

        It is of the same program, measured the same way on such a GPU under this driver; of another
        board only where a yardstick was timed on both.
        """
        named = as_text(identity(wanted.source_hash, environment))
        own_first = "about = ? AND identity = ? ORDER BY board = ? DESC, rows.place DESC"
        found = self._rows(own_first, _about(wanted), named, environment["uuid"])
        usable = (row for row, then in found if not row.untrusted and compares(then, environment))
        return next(usable, None)

    def why_miss(self, wanted: Row, environment: Mapping[str, Any]) -> str | None:
        """Return why no stored row answers for a wanted one, in words; None where one does."""
        found = self._rows("about = ? ORDER BY rows.place DESC", _about(wanted))
        reasons = [differences(row, then, wanted, environment) for row, then in found]
        if reasons:
            nearest = min(reasons, key=len)
            return "; ".join(nearest) or None
        others = self._rows("op = ?", wanted.op)
        alike = {_about(row) for row, _ in others if row.key[:3] == wanted.key[:3]}
        if not alike:
            return f"nothing of {wanted.kernel} was measured for this problem"
        return f"this config was not measured; others of {wanted.kernel} were for this problem"

    def read_file(self, path: str | Path) -> None:
        """Take in the rows of a result file that the store has not; no file is no error.

        Raises:
            StoreError: it is damaged or of another schema.
        """
        if not Path(path).exists():
            return
        file = load(path)
        with self._transaction() as database:
            have = set(database.execute("SELECT about, run FROM rows"))
            runs = [file.environment, *file.earlier]
            new = [row for row in file.rows if (_about(row), row.run) not in have]
            for run in runs:
                self._keep_run(run, replace=False)
            # the oldest first: the newest holds
            self._insert(sorted(new, key=lambda row: row.run), runs)

    def write_file(self, path: str | Path, ops: Collection[str] = ()) -> None:
        """Write the newest row of every key into a result file, if there is any.

        What is in the file and not in the store stays, if it is newer. Nobody else writes meanwhile
        who writes from this store.

        Args:
            ops: names of the Ops whose rows belong there; all if empty

        Raises:
            StoreError: the folder cannot be written.
        """
        with self._transaction() as database:
            asked = ops or [op for (op,) in database.execute("SELECT DISTINCT op FROM rows")]
            newest = "rows.place IN (SELECT max(place) FROM rows WHERE op = ? GROUP BY about)"
            mine = [
                item for op in asked for item in self._rows(f"{newest} ORDER BY rows.place", op)
            ]
            have = set(database.execute("SELECT about, run FROM rows"))
            if mine:
                there = load(path) if Path(path).exists() else None
                save(path, _as_file(mine, there, have))

    def _write_ahead(self) -> None:
        """Have a write-ahead log; of several that open a new database at once, one sets it."""
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                # for this SQLite does not wait by itself
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _refuse_others(self) -> bool:
        """Refuse a database that is none of ours, before anything of it is changed.

        Returns:
            whether it has our tables; else it has none
        """
        (schema,) = self._database.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in self._database.execute("SELECT name FROM sqlite_master")}
        if schema not in (0, SCHEMA):
            raise StoreError(f"{self.path}: needs schema {SCHEMA}, got {schema}")
        if bool(schema) != bool(tables) or (schema and not {"runs", "rows"} <= tables):
            raise StoreError(f"{self.path} is a database of something else; name another folder")
        return bool(tables)

    def _refuse_damage(self) -> None:
        """Refuse a database with a page that is not what it was, before rows are read or lost.

        Raises:
            sqlite3.DatabaseError: says which.
        """
        # the first is enough to say; a store of 100 MB takes a tenth of a second
        (said,) = self._database.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(" ".join(said.rpartition("***")[2].split()))

    def _make_tables(self) -> None:
        with self._transaction() as database:
            if self._refuse_others():
                return
            for statement in TABLES.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA}")

    def _keep_run(self, environment: Mapping[str, Any], replace: bool = True) -> None:
        action = "UPDATE SET environment = excluded.environment" if replace else "NOTHING"
        self._database.execute(
            f"INSERT INTO runs (date, environment) VALUES (?, ?) ON CONFLICT (date) DO {action}",
            (environment["date"], json.dumps(plain(environment), ensure_ascii=False)),
        )

    def _insert(self, rows: Iterable[Row], runs: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows of these runs, or of those that are kept already."""
        known = {run["date"]: run for run in runs}
        for row in rows:
            date = row.run or runs[0]["date"]
            if date not in known:
                known[date] = self._run(date)
            run = known[date]
            named = as_text(identity(row.source_hash, run))
            content = json.dumps(plain({**row.to_json(), "run": date}), ensure_ascii=False)
            self._database.execute(
                _INSERT, (_about(row), named, run["uuid"], row.op, date, content)
            )

    def _run(self, date: str) -> Mapping[str, Any]:
        found = self._database.execute("SELECT environment FROM runs WHERE date = ?", (date,))
        (text,) = found.fetchone() or (None,)
        if text is None:
            raise StoreError(f"{self.path}: has no run of {date}, which a row names")
        return _environment(text)

    def _rows(self, where: str, *values: str) -> list[tuple[Row, dict[str, Any]]]:
        with self._said(), self._lock:
            found = self._database.execute(_FOUND + where, values).fetchall()
            runs = {text: _environment(text) for text in {text for _, text in found}}
            return [(_row(row, runs[run]), runs[run]) for row, run in found]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the database's one lock on writing; all that is done meanwhile is kept, or none."""
        with self._said(), self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                # a full disk has ended it already
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except sqlite3.OperationalError as error:
            raise StoreError(f"{self.path} cannot be used: {error}") from error
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(
                f"{self.path} is damaged or no database: {error}; remove it: the next tune takes "
                "in the result files beside it"
            ) from error


def _row(text: str, run: Mapping[str, Any]) -> Row:
    found = _parsed(text)
    wrong = row_error(found)
    if wrong:
        raise ValueError(f"a row {wrong}")
    return replace(Row.from_json(found), board=run["uuid"] or "")


def _environment(text: object) -> dict[str, Any]:
    found = _parsed(text)
    wrong = run_error(found)
    if wrong:
        raise ValueError(f"an environment{wrong}")
    run: dict[str, Any] = found
    return run


def _parsed(text: object) -> Any:
    """Return what a text of the database says; a column may hold anything."""
    if not isinstance(text, str):
        raise ValueError(f"a text is {type(text).__name__}")
    return door.parse_json(text)


def _about(row: Row) -> str:
    return as_text(list(row.key))


def _later(date: str) -> str:
    later = datetime.fromisoformat(date) + timedelta(milliseconds=1)
    return later.isoformat(timespec="milliseconds")


def _as_file(
    mine: Iterable[tuple[Row, dict[str, Any]]],
    there: ResultFile | None,
    have: Collection[tuple[str, str]],
) -> ResultFile:
    """Return a file of these rows with their runs, and of what it has and the store does not.

    have: (key, run) of all rows of the store; one of them is in the file because it was the newest
    """
    rows = {row.key: row for row in there.rows} if there else {}
    runs = {run["date"]: run for run in (there.earlier if there else [])}
    if there:
        runs[there.environment["date"]] = there.environment
    for row, run in mine:
        old = rows.get(row.key)
        if old is None or (_about(old), old.run) in have or old.run <= row.run:
            rows[row.key] = row
        runs[run["date"]] = run
    used = {row.run for row in rows.values()}
    *earlier, last = [run for date, run in sorted(runs.items()) if date in used]
    return ResultFile(last, list(rows.values()), earlier)
