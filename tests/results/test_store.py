"""The working memory: what it answers, why it does not, and that nothing committed is lost."""

import re
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from result_rows import make_environment, make_row

from ferrum_numba import results
from ferrum_numba.errors import StoreError
from ferrum_numba.results.store import Store

EARLY, LATE = (f"2026-01-0{day}T00:00:00.000+00:00" for day in (1, 2))
YARDSTICK = [{"kernel": "read", "program": "abc", "us": 100.0}]
SLOWER = [{**YARDSTICK[0], "us": 103.0}]
OTHER = [{**YARDSTICK[0], "program": "def"}]


def environment_of(uuid="GPU-first", date=EARLY, **changes):
    return {**make_environment(date), "uuid": uuid, "driver": "580.1", **changes}


def facts(**changes):
    found = environment_of()
    return {"gpu_facts": {**found["gpu_facts"], **changes}}


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "tuning.sqlite") as found:
        yield found


def add(store, *rows, **changes):
    """Add rows as a run of their own."""
    run = store.begin(environment_of(**changes))
    store.add([replace(row, run=run["date"]) for row in rows], run)
    return run


def test_what_was_added_is_there_as_a_file_has_it(store):
    add(store, make_row(us=10.123456789), make_row(M=2, status="slow"))
    first, second = store.rows("w4a16_gemm")
    assert (first.us, second.status) == (10.1235, "slow")
    assert store.rows("another_op") == []


def test_another_process_sees_it_at_once(store):
    add(store, make_row())
    with Store(store.path) as other:
        assert len(other.rows("w4a16_gemm")) == 1


def test_runs_of_one_moment_have_dates_of_their_own(store):
    dates = [add(store, make_row(M=m))["date"] for m in (1, 2, 3)]
    assert len(set(dates)) == 3
    assert dates == sorted(dates)


def test_the_newer_of_two_rows_holds(store):
    add(store, make_row(us=10.0))
    add(store, make_row(us=20.0))
    assert [row.us for row in store.rows("w4a16_gemm")] == [20.0]
    assert store.known(make_row(), environment_of()).us == 20.0


# what differs, and the words that why_miss has for it
ELSEWHERE = [
    ({"driver": "610.2"}, "another driver: was 580.1, is 610.2"),
    ({"policy": {"samples": 9}}, "another policy: samples was 3, is 9"),
    (facts(num_sms=114), "another number of SMs: was 132, is 114"),
    (facts(dram_bytes=80 * 2**30), "another memory in GiB: was 131, is 80"),
    (facts(l2_bytes=50 * 2**20), "another L2 in bytes: was 62914560, is 52428800"),
    (facts(arch="sm_90"), "another architecture: was sm_90a, is sm_90"),
    ({"uuid": "GPU-second"}, "another board, first, and no yardstick was timed on both"),
]


@pytest.mark.parametrize(("here", "words"), ELSEWHERE)
def test_a_row_from_elsewhere_does_not_answer_and_says_why(store, here, words):
    add(store, make_row())
    wanted, now = make_row(), environment_of(**here)
    assert store.known(wanted, now) is None
    assert store.why_miss(wanted, now) == words


@pytest.mark.parametrize(
    "here", [{}, {"gpu": "NVIDIA H200 NVL"}, facts(dram_bytes=141 * 10**9 - 2**20)]
)
def test_what_kernels_cannot_tell_apart_answers(store, here):
    add(store, make_row())
    assert store.known(make_row(), environment_of(**here)).us == 10.0
    assert store.why_miss(make_row(), environment_of(**here)) is None


def test_boards_with_a_yardstick_answer_for_each_other_and_their_own_rows_first(store):
    add(store, make_row(us=10.0), make_row(M=2, us=30.0), uuid="GPU-1", yardstick=YARDSTICK)
    add(store, make_row(us=20.0), uuid="GPU-2", yardstick=SLOWER)
    here = environment_of("GPU-1", yardstick=YARDSTICK)
    assert store.known(make_row(), here).us == 10.0
    there = environment_of("GPU-2", yardstick=SLOWER)
    assert store.known(make_row(M=2), there).us == 30.0
    for unlike in ({}, {"yardstick": OTHER}):
        assert store.known(make_row(M=2), environment_of("GPU-2", **unlike)) is None


def test_runs_are_in_the_order_that_they_began(store):
    add(store, make_row(), date=LATE)
    first = add(store, make_row(), uuid="GPU-second")
    store.add([make_row(run=first["date"])], {**first, "versions": {"nvvm": "13.5"}})
    assert [(run["date"], run["uuid"]) for run in store.runs()] == [
        (LATE, "GPU-first"), (EARLY, "GPU-second")
    ]  # fmt: skip
    assert store.runs()[1]["versions"] == {"nvvm": "13.5"}


def test_another_program_says_whether_the_toolchain_changed(store):
    add(store, make_row())
    wanted, now = make_row(source_hash="def"), environment_of()
    assert store.known(wanted, now) is None
    assert store.why_miss(wanted, now) == (
        "another program: the kernel's source changed, with the same toolchain"
    )
    now["versions"] = {**now["versions"], "numba": "9.9"}
    numba = environment_of()["versions"]["numba"]
    assert store.why_miss(wanted, now) == f"another program: numba was {numba}, is 9.9"


def test_all_that_differs_is_said_of_the_nearest_row(store):
    add(store, make_row(untrusted="2 others"), driver="550.0")
    now = environment_of(driver="610.2")
    assert store.known(make_row(), now) is None
    assert store.why_miss(make_row(), now) == (
        "another driver: was 550.0, is 610.2; not trusted: 2 others"
    )
    add(store, make_row(untrusted="2 others"), driver="610.2")
    assert store.known(make_row(), now) is None
    assert store.why_miss(make_row(), now) == "not trusted: 2 others"


def test_what_was_never_measured_says_so(store):
    assert store.why_miss(make_row(), environment_of()) == (
        "nothing of marlin was measured for this problem"
    )
    add(store, make_row(), make_row(config={"tile_m": 8}))
    assert store.why_miss(make_row(config={"tile_m": 32}), environment_of()) == (
        "this config was not measured; others of marlin were for this problem"
    )


def test_the_result_file_has_the_newest_of_each_key_and_its_run(store, tmp_path):
    path = tmp_path / "w4a16_gemm.json"
    store.write_file(path)
    assert not path.exists(), "there is nothing to write yet"
    add(store, make_row(us=10.0), make_row(M=2))
    add(store, make_row(us=20.0), uuid="GPU-second", date=LATE)
    store.write_file(path)
    file = results.load(path)
    assert [row.us for row in file.rows] == [10.0, 20.0]
    assert [file.environment_of(row)["uuid"] for row in file.rows] == ["GPU-first", "GPU-second"]


def test_a_file_has_the_rows_of_its_ops(store, tmp_path):
    add(store, make_row(), make_row(op="other"))
    store.write_file(tmp_path / "file.json", ["other"])
    assert [row.op for row in results.load(tmp_path / "file.json").rows] == ["other"]


def test_what_another_writer_put_into_the_file_stays_if_it_is_newer(store, tmp_path):
    path = tmp_path / "w4a16_gemm.json"
    add(store, make_row(us=10.0), make_row(M=2, us=10.0), date=LATE)
    theirs = [make_row(us=1.0), make_row(M=3, us=3.0)]
    results.save(path, results.ResultFile(environment_of(), theirs))
    store.write_file(path)
    assert [row.us for row in results.load(path).rows] == [10.0, 3.0, 10.0]
    newer = make_environment("2026-01-03T00:00:00.000+00:00")
    results.save(path, results.ResultFile(newer, theirs))
    store.write_file(path)
    assert sorted(row.us for row in results.load(path).rows) == [1.0, 3.0, 10.0]


def test_a_program_that_came_back_is_in_the_file_again(store, tmp_path):
    """Its row is older than that of the program between, and is what would be run now."""
    path = tmp_path / "w4a16_gemm.json"
    first = add(store, make_row(us=10.0))
    add(store, make_row(us=20.0, source_hash="def"), date=LATE)
    store.write_file(path)
    again = store.begin(environment_of(date="2026-01-03T00:00:00.000+00:00"))
    store.add([store.known(make_row(), again)], again)
    store.write_file(path)
    (row,) = results.load(path).rows
    assert (row.us, row.run) == (10.0, first["date"])


def test_a_file_that_was_there_first_is_taken_in_once(store, tmp_path):
    path = tmp_path / "w4a16_gemm.json"
    results.save(path, results.ResultFile(environment_of(), [make_row(), make_row(M=2)]))
    for _ in range(2):
        store.read_file(path)
    assert [row.run for row in store.rows("w4a16_gemm")] == [EARLY, EARLY]
    assert store.known(make_row(M=2), environment_of()).us == 10.0


def test_two_boards_that_tune_into_one_file_lose_nothing(tmp_path):
    path = tmp_path / "w4a16_gemm.json"

    def tune(board):
        with Store(tmp_path / "tuning.sqlite") as store:
            run = store.begin(environment_of(f"GPU-{board}"))
            for m in range(1, 21):
                row = make_row(M=100 * board + m, run=run["date"])
                store.add([row], run)
                if m % 5 == 0:
                    store.write_file(path)

    with ThreadPoolExecutor(2) as both:
        list(both.map(tune, (1, 2)))
    file = results.load(path)
    assert sorted(row.problem["M"] for row in file.rows) == [*range(101, 121), *range(201, 221)]
    for row in file.rows:
        assert file.environment_of(row)["uuid"] == f"GPU-{row.problem['M'] // 100}"


def test_many_may_make_one_store_at_once(tmp_path):
    for i in range(10):
        begin = threading.Barrier(6)

        def write(number, path=tmp_path / f"{i}.sqlite", begin=begin):
            begin.wait()
            with Store(path) as store:
                add(store, make_row(M=number + 1))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(write, range(6)))
        with Store(tmp_path / f"{i}.sqlite") as store:
            assert len(store.rows("w4a16_gemm")) == 6


def test_one_store_serves_several_threads(store):
    run = store.begin(environment_of())
    with ThreadPoolExecutor(4) as pool:
        rows = [make_row(M=m, run=run["date"]) for m in range(1, 41)]
        list(pool.map(lambda row: store.add([row], run), rows))
    assert len(store.rows("w4a16_gemm")) == 40


def test_a_full_disk_is_one_sentence_and_what_was_there_stays(store):
    add(store, make_row())
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    many = [make_row(M=m, reason="x" * 1000) for m in range(2, 1000)]
    with pytest.raises(StoreError) as full:
        add(store, *many)
    assert str(full.value) == f"{store.path} cannot be used: database or disk is full"
    store._database.execute("PRAGMA max_page_count = 100000")
    assert store.known(make_row(), environment_of()).us == 10.0
    add(store, make_row(M=1000))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"no database at all, but as long as a header is" * 20,
            "is damaged or no database: file is not a database; remove it: ",
        ),
        (None, "cannot be used: unable to open database file"),
    ],
)
def test_what_is_no_store_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "tuning.sqlite"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=f"{path} {words}"):
        Store(path)


@pytest.mark.parametrize("schema", [0, 1])
@pytest.mark.parametrize("table", ["customers", "rows"])
def test_a_database_of_something_else_is_left_as_it_is(tmp_path, schema, table):
    path = tmp_path / "tuning.sqlite"
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE {table} (name)")
        database.execute(f"PRAGMA user_version = {schema}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"{path} is a database of something else; name another"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("rows SET content = '{'", "Expecting property name"),
        ("rows SET content = '[]'", "a row must be an object, got list"),
        ("rows SET content = '{}'", "a row has no kernel"),
        ("runs SET environment = '{'", "Expecting property name"),
    ],
)
def test_a_damaged_row_is_one_sentence(store, change, words):
    add(store, make_row())
    store._database.execute(f"UPDATE {change}")
    with pytest.raises(StoreError, match=f"{store.path} is damaged or no database: {words}"):
        store.rows("w4a16_gemm")


def test_a_damaged_page_is_said_when_the_store_is_opened(tmp_path):
    path = tmp_path / "tuning.sqlite"
    with Store(path) as found:
        add(found, *(make_row(M=m) for m in range(1, 200)))
    whole = path.read_bytes()
    page_bytes = 4096
    pages = len(whole) // page_bytes
    assert pages > 20
    for page in range(1, pages, 7):
        start = page * page_bytes
        path.write_bytes(whole[:start] + bytes(page_bytes) + whole[start + page_bytes :])
        with pytest.raises(StoreError, match=f"^{path} is damaged or no database: ") as refused:
            Store(path)
        assert "\n" not in str(refused.value)
        assert "; remove it: the next tune takes in the result files beside" in str(refused.value)
    path.write_bytes(whole)
    with Store(path) as found:
        assert len(found.rows("w4a16_gemm")) == 199


def test_a_store_of_another_schema_is_refused(tmp_path):
    path = tmp_path / "tuning.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(StoreError, match="needs schema 1, got 7"):
        Store(path)


def test_a_row_of_an_unknown_run_is_refused(store):
    with pytest.raises(StoreError, match=re.escape(f"has no run of {LATE}, which a row")):
        store.add([make_row(run=LATE)], environment_of())
    assert store.rows("w4a16_gemm") == []
