"""Records: nothing lost, nothing half-written, nothing measured twice."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from umup.config import NUMERICS
from umup.errors import RecordError
from umup.lab import records, schemas
from umup.lab.records import Store
from umup.lab.schemas import POINTS, RUNS, SCHEMA, DamagedShard

ROOT = Path(__file__).resolve().parent.parent


def make_row(key="k0", **changes):
    row = {
        "key": key,
        "study": "s",
        "profile": "p",
        "scheme": "umup",
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 2,
        "d_head": 16,
        "d_ff": 128,
        "vocab_size": 256,
        "seq_len": 64,
        "batch_size": 16,
        "steps": 500,
        "lr": 0.5,
        "seed": 0,
        "status": "ok",
        "final_loss": 1.5,
        "best_loss": 1.4,
        "val_loss": 1.6,
        "val_bits_per_byte": 2.3,
        "numerics": NUMERICS,
        "spec": "{}",
        "hps": "{}",
        "curve_steps": [0, 10],
        "curve_loss": [5.5, 1.5],
        "probe_steps": [],
        "probe_tensors": [],
        "probe_values": [],
        "tokens_per_s": 1e4,
        "wall_s": 3.0,
        "compile_s": 1.0,
        "device": "cpu",
        "device_count": 1,
        "jax": "0",
        "jaxlib": "0",
        "flax": "0",
        "python": "3",
        "xla_flags": "",
        "git_commit": "unknown",
        "git_dirty": False,
        "data_digest": "d",
        "tokenizer_digest": "t",
        "created": "2024-01-01T00:00:00.000000+00:00",
        "schema": SCHEMA,
    }
    return row | changes


def make_point(key="k0"):
    columns = ("device", "device_count", "jax", "jaxlib", "flax", "python", "xla_flags")
    shared = ("study", "profile", "numerics", "wall_s", "git_commit", "git_dirty", "created")
    row = {name: value for name, value in make_row(key).items() if name in (*columns, *shared)}
    return row | {"key": key, "what": "w", "spec": "{}", "result": '{"x": 1.5}', "schema": SCHEMA}


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".locks")


def test_round_trip_keeps_every_value_and_type(tmp_path):
    row = make_row(lr=np.float32(0.25), seed=np.int64(3), wall_s=2, curve_loss=np.array([2.0, 1.0]))
    shard = Store(tmp_path).append([row, make_row("k1", status="diverged", final_loss=np.nan)])
    assert shard is not None and shard.parent == tmp_path
    runs = Store(tmp_path).read()
    assert tuple(runs.columns) == RUNS.columns and set(make_row()) == set(RUNS.columns)
    first = runs[runs.key == "k0"].iloc[0]
    assert (first.lr, first.seed, first.wall_s) == (0.25, 3, 2.0)
    assert first.curve_loss.tolist() == [2.0, 1.0] and first.curve_steps.dtype == np.int32
    assert np.isnan(runs[runs.key == "k1"].final_loss.iloc[0])
    assert (runs.git_dirty.dtype, runs.seed.dtype) == (bool, np.int64)


def test_a_store_reads_each_shard_once_and_a_touched_one_again(tmp_path, monkeypatch):
    opened = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or read_bytes(path))
    store = Store(tmp_path)
    first, second = store.append([make_row("a")]), store.append([make_row("b")])
    assert set(store.read()["key"]) == {"a", "b"} == store.keys()
    third = store.append([make_row("c")])
    assert set(store.read()["key"]) == {"a", "b", "c"}
    assert sorted(opened) == sorted([first, second, third])
    second.write_bytes(first.read_bytes())
    assert set(store.read()["key"]) == {"a", "c"} == store.keys()
    second.unlink()
    third.write_bytes(b"no shard")
    with pytest.raises(RecordError, match=third.name):
        store.read()


def test_no_rows_no_shard_and_an_absent_store_is_empty(tmp_path):
    store = Store(tmp_path / "absent")
    assert store.append([]) is None and store.keys() == set() and store.running() == set()
    runs = store.read()
    assert runs.empty and tuple(runs.columns) == RUNS.columns
    assert not store.folder.exists()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": "0"}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"lr": None}, "lr"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("inf")}, "lr"),
        ({"git_dirty": 0}, "git_dirty"),
        ({"status": "fine"}, "status"),
        ({"final_loss": float("nan")}, "final_loss"),
        ({"status": "diverged"}, "final_loss"),
        ({"curve_steps": [0.5, 1.0]}, "curve_steps"),
        ({"curve_loss": [1.0]}, "curve_loss"),
        ({"curve_loss": 1.0}, "curve_loss"),
        ({"schema": SCHEMA + 1}, "schema"),
        ({"key": "../k"}, "key"),
        ({"key": ""}, "key"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_row_names_its_column_and_writes_nothing(tmp_path, change, field):
    with pytest.raises(RecordError) as error:
        Store(tmp_path).append([make_row("good"), make_row(**change)])
    assert error.value.field == field
    assert list(tmp_path.iterdir()) == []


def test_a_missing_column_is_named(tmp_path):
    row = make_row()
    del row["val_loss"]
    with pytest.raises(RecordError, match=r"val_loss: .*missing: \['val_loss'\]"):
        Store(tmp_path).append([row])


def test_of_identical_keys_the_earliest_stays(tmp_path):
    store = Store(tmp_path)
    for day, loss in ((2, 2.0), (1, 1.0), (3, 3.0)):
        store.append([make_row(created=f"2024-01-0{day}T00:00:00+00:00", final_loss=loss)])
    assert store.read().final_loss.tolist() == [1.0]
    store.compact()
    assert store.read().final_loss.tolist() == [1.0]


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_a_shard_cut_short_is_named_then_repaired(tmp_path, cut):
    store = Store(tmp_path)
    store.append([make_row("good")])
    bad = store.append([make_row("bad")])
    bad.write_bytes(bad.read_bytes()[:cut])
    for look in (Store(tmp_path).read, Store(tmp_path).keys, store.compact):
        with pytest.raises(RecordError, match="status --repair") as error:
            look()
        assert error.value.field == str(bad)
    assert store.repair() == [tmp_path / ".damaged" / bad.name]
    assert Store(tmp_path).keys() == store.keys() == {"good"}
    assert (tmp_path / ".damaged" / bad.name).exists() and store.repair() == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: t.drop_columns(["seed"]), "differs in seed"),
        (lambda t: t.append_column("extra", pa.array([1])), "differs in extra"),
        (
            lambda t: t.set_column(RUNS.columns.index("seed"), "seed", pa.array(["0"])),
            "differs in seed",
        ),
        (lambda t: t.set_column(len(RUNS.columns) - 1, "schema", pa.array([0])), r"schema \[0\]"),
        (lambda t: t.select(list(reversed(RUNS.columns))), "column order"),
    ],
)
def test_a_shard_of_another_schema_is_named(tmp_path, spoil, said):
    store = Store(tmp_path)
    shard = store.append([make_row()])
    pq.write_table(spoil(pq.ParquetFile(shard).read()), shard)
    with pytest.raises(RecordError, match=said) as error:
        store.read()
    assert error.value.field == str(shard)
    assert len(store.repair()) == 1 and store.read().empty


@pytest.mark.parametrize("kind", ["runs", "points"])
def test_a_changed_bit_anywhere_in_a_shard_is_found(tmp_path, kind):
    store = Store(tmp_path) if kind == "runs" else Store(tmp_path).points
    row = make_row(curve_loss=[5.5, 1.5]) if kind == "runs" else make_point()
    shard = store.append([row])
    good = shard.read_bytes()
    mark, ends = schemas._MARK, (4, 8)
    seal = range(good.index(mark), good.rindex(mark) + len(mark))
    places = {*range(ends[0]), *seal, *range(len(good) - ends[1], len(good))}
    random = np.random.default_rng(0)
    places |= set(random.integers(0, len(good), 1000).tolist())
    for place in places:
        flipped = bytearray(good)
        flipped[place] ^= 1 << int(random.integers(8))
        with pytest.raises(DamagedShard):
            store.schema.unpack(bytes(flipped), "shard")
    for first, count in ((0, 512), (len(good) // 2, 3), (len(good) - 700, 512)):  # lost sectors
        zeroed = good[:first] + bytes(count) + good[first + count :]
        with pytest.raises(DamagedShard):
            store.schema.unpack(zeroed, "shard")
    shard.write_bytes(zeroed)
    with pytest.raises(RecordError, match="status --repair") as error:
        store.read()
    assert error.value.field == str(shard)
    assert [path.name for path in store.repair()] == [shard.name] and store.keys() == set()


def test_other_readers_and_shards_without_a_seal(tmp_path):
    rows = [make_row("a"), make_row("b", status="diverged", final_loss=np.nan)]
    shard = Store(tmp_path).append(rows)
    before = Store(tmp_path).read()
    pd.testing.assert_frame_equal(pd.read_parquet(shard)[list(before)], before)
    pq.write_table(pq.ParquetFile(shard).read(), shard)  # as umup wrote them before
    assert schemas._MARK not in shard.read_bytes()
    pd.testing.assert_frame_equal(Store(tmp_path).read(), before)


def test_every_committed_shard_has_a_seal_that_holds():
    shards = sorted((ROOT / "experiments").glob("*/records/cpu/**/*.parquet"))
    assert shards
    for shard in shards:
        schema = POINTS if shard.parent.name == "points" else RUNS
        data = shard.read_bytes()
        assert schemas._MARK in data, shard
        assert len(schema.unpack(data, str(shard)))


def newer(table: pa.Table) -> pa.Table:
    """The table as the next umup might write it: with one more column."""
    at = table.schema.get_field_index("schema")
    table = table.set_column(at, "schema", pa.array([SCHEMA + 1] * len(table)))
    return table.append_column("more", pa.array([1.0] * len(table)))


@pytest.mark.parametrize("pack", [lambda t: t, lambda t: t.drop_columns(["more", "seed"])])
def test_a_newer_umups_shard_is_refused_and_left_alone(tmp_path, pack):
    store = Store(tmp_path)
    store.append([make_row("old")])
    shard = store.append([make_row("new")])
    shard.write_bytes(RUNS.pack(pack(newer(pq.ParquetFile(shard).read()))))
    for read in (Store(tmp_path).read, Store(tmp_path).keys, store.compact):
        with pytest.raises(RecordError, match="newer umup") as error:
            read()
        assert error.value.field == str(shard) and "--repair" not in str(error.value)
    assert store.repair() == [] and shard.exists()


SHARD = "0123456789ab-1-0.parquet"
STRANGE = {
    "link to nothing": (lambda path: path.symlink_to("/nowhere/annexed"), "git annex get"),
    "link to itself": (lambda path: path.symlink_to(path), "link to nothing"),
    "folder": (Path.mkdir, "status --repair"),
    "link to a folder": (lambda path: path.symlink_to(path.parent), "status --repair"),
    "pipe": (os.mkfifo, "status --repair"),
    "empty": (Path.touch, "status --repair"),
    "text": (lambda path: path.write_text("key,study\n"), "status --repair"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_shard_but_named_like_one_is_an_error(tmp_path, kind):
    make, said = STRANGE[kind]
    store, strange = Store(tmp_path), tmp_path / SHARD
    store.append([make_row()])
    make(strange)
    for read in (store.read, store.keys, store.compact):
        with pytest.raises(RecordError, match=said) as error:
            read()
        assert error.value.field == str(strange)
    moved = store.repair()
    if "repair" in said:
        assert moved == [tmp_path / ".damaged" / SHARD] and store.keys() == {"k0"}
    else:  # its content may be fetched yet
        assert moved == [] and strange.is_symlink()


@pytest.mark.parametrize("call", ["listdir", "read_bytes"])
def test_a_store_that_cannot_be_read_is_an_error(tmp_path, monkeypatch, call):
    store = Store(tmp_path)
    shard = store.append([make_row()])

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os if call == "listdir" else Path, call, refused)
    for read in (store.read, Store(tmp_path).keys, store.compact):
        with pytest.raises(RecordError, match=r"unreadable \(Permission denied") as error:
            read()
        assert error.value.field == str(tmp_path if call == "listdir" else shard)
    if call == "read_bytes":
        assert store.repair() == []


def test_a_listing_that_never_holds_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_PAUSES_S", (0.0, 0.0))
    store = Store(tmp_path)
    monkeypatch.setattr(store, "_shards", lambda: [tmp_path / SHARD])
    with pytest.raises(RecordError, match="listed, but not there"):
        store.read()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "free some disk space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EIO, "writable folder"),
    ],
)
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_write_says_why_and_leaves_earlier_shards(
    tmp_path, monkeypatch, code, said, where
):
    store = Store(tmp_path)
    good = store.append([make_row("good")])

    def fail(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, where, fail)
        with pytest.raises(RecordError, match=said) as error:
            store.append([make_row("lost")])
        assert "earlier records are intact" in str(error.value)
    assert visible(tmp_path) == [good.name] and store.keys() == {"good"}
    store.append([make_row("lost")])
    assert store.keys() == {"good", "lost"}


def run_python(code: str, *arguments: object, **options) -> subprocess.Popen:
    preamble = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    preamble += "from umup.lab.records import Store; from test_records import make_row\n"
    command = [sys.executable, "-c", preamble + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def test_a_write_that_the_kernel_cuts_short_leaves_no_trace(tmp_path):
    Store(tmp_path).append([make_row("good")])
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            Store(sys.argv[1]).append([make_row("big", spec="".join(map(str, range(9999))))])
        except ValueError as error:
            print(type(error).__name__, error)
    """
    out, _ = run_python(code, tmp_path).communicate(timeout=60)
    assert out.startswith("RecordError") and "file size limit" in out
    assert len(visible(tmp_path)) == 1 and Store(tmp_path).keys() == {"good"}


def test_a_shard_that_goes_while_it_is_looked_at_is_gone_and_not_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda self: True)  # it was there a moment ago
    with pytest.raises(FileNotFoundError):
        Store(tmp_path)._read_shard(tmp_path / "gone.parquet")


def test_processes_share_a_study_without_loss_or_repetition(tmp_path):
    code = """
        import time
        store = Store(sys.argv[1])
        while time.time() < float(sys.argv[3]): pass
        for i in range(40):
            with store.claim(f"k{i}") as mine:
                if mine:
                    print(i)
                    store.append([make_row(f"k{i}", xla_flags=sys.argv[2])])
                    if i % 10 == 9:
                        store.compact()
    """
    start = time.time() + 3
    workers = [run_python(code, tmp_path, name, start) for name in "abc"]
    ran = [int(i) for w in workers for i in w.communicate(timeout=60)[0].split()]
    assert [w.returncode for w in workers] == [0, 0, 0]
    assert sorted(ran) == list(range(40))
    assert Store(tmp_path).keys() == {f"k{i}" for i in range(40)}
    assert list((tmp_path / ".locks").iterdir()) == []


def test_a_claim_excludes_shows_as_running_and_ends_with_its_process(tmp_path):
    code = """
        import time
        with Store(sys.argv[1]).claim("k") as mine:
            print(mine, flush=True)
            time.sleep(60)
    """
    store = Store(tmp_path)
    holder = run_python(code, tmp_path)
    assert holder.stdout.readline() == "True\n"
    with store.claim("k") as mine, store.claim("other") as other:
        assert (mine, other) == (False, True)
        assert store.running() == {"k", "other"}
    assert store.running() == {"k"}
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert store.running() == set()
    with store.claim("k") as mine, store.claim("k") as again:
        assert (mine, again) == (True, False)
        store.append([make_row("k")])
    with store.claim("k") as mine:
        assert mine is False  # on record


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM])
def test_a_file_system_that_refuses_locks_is_an_error_before_any_run(tmp_path, monkeypatch, code):
    def refused(descriptor, operation):
        raise OSError(code, os.strerror(code))

    store = Store(tmp_path)
    store.append([make_row()])
    (tmp_path / ".locks").mkdir()
    (tmp_path / ".locks" / "k1.lock").touch()
    monkeypatch.setattr(fcntl, "flock", refused)
    opened = len(os.listdir("/proc/self/fd"))
    for ask in (store.running, lambda: store.claim("k1").__enter__()):
        with pytest.raises(RecordError, match="refuses flock") as error:
            ask()
        assert error.value.field == str(tmp_path / ".locks" / "k1.lock")
        assert os.strerror(code) in str(error.value) and "cluster.md" in str(error.value)
    assert len(os.listdir("/proc/self/fd")) == opened
    store.append([make_row("k1")])  # what is measured is kept
    assert store.compact() and store.keys() == {"k0", "k1"}


def test_a_lock_file_that_is_another_each_time_ends_the_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "samestat", lambda one, other: False)
    with pytest.raises(RecordError, match="inode"), Store(tmp_path).claim("k"):
        pass


@pytest.mark.parametrize("theirs", ["append", "compact", "repair"])
@pytest.mark.parametrize(
    ("ours", "owner", "call"),
    [
        ("append", os, "replace"),
        ("compact", Path, "read_bytes"),
        ("compact", os, "replace"),
        ("compact", Path, "unlink"),
    ],
)
def test_where_locks_do_nothing_no_row_is_lost(tmp_path, monkeypatch, ours, owner, call, theirs):
    """Another node works in the store just before each of our calls, in one run after another."""
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)
    monkeypatch.setattr(os, "getpid", lambda: 1)  # both in a container
    acts = {
        "append": lambda store: store.append([make_row("new")]),
        "compact": Store.compact,
        "repair": Store.repair,
    }
    made, wanted = getattr(owner, call), {"a", "b", "c"}
    if "append" in (ours, theirs):
        wanted.add("new")
    for moment in range(10):
        folder, calls = tmp_path / str(moment), []
        store = Store(folder)
        store.append([make_row("a")])
        store.append([make_row("b"), make_row("c")])

        def late(*arguments, folder=folder, calls=calls, moment=moment, **options):
            calls.append(call)
            if len(calls) == moment + 1:
                acts[theirs](Store(folder))
            return made(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, call, late)
            acts[ours](store)
        if len(calls) <= moment:
            break
        assert sorted(Store(folder).read().key) == sorted(wanted)
    assert 0 < moment < 9


def test_a_claim_needs_a_plain_key(tmp_path):
    with pytest.raises(RecordError, match="key"), Store(tmp_path).claim("a/b"):
        pass


@pytest.mark.parametrize("survivors", range(4))
def test_compact_killed_at_any_step_loses_nothing(tmp_path, monkeypatch, survivors):
    store = Store(tmp_path)
    for i in range(3):
        store.append([make_row(f"k{i}")])
    stray = tmp_path / ".stray.parquet.tmp"
    stray.write_bytes(b"half a shard")
    os.utime(stray, (0, 0))
    before, unlink, count = store.read(), Path.unlink, iter(range(100))

    def killed(path, **options):
        if path.suffix == ".parquet" and next(count) >= survivors:
            raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        if survivors < 3:
            with pytest.raises(KeyboardInterrupt):
                store.compact()
        else:
            store.compact()
    pd.testing.assert_frame_equal(Store(tmp_path).read(), before)
    merged = store.compact()
    assert visible(tmp_path) == [merged.name] and store.keys() == {"k0", "k1", "k2"}
    pd.testing.assert_frame_equal(store.read(), before)
    assert store.compact() == merged
    assert Store(tmp_path / "none").compact() is None


def test_stale_and_current_split_by_numerics():
    runs = pd.DataFrame({"key": list("abc"), "numerics": [NUMERICS, NUMERICS - 1, NUMERICS]})
    assert records.current(runs).key.tolist() == ["a", "c"]
    assert records.stale(runs).key.tolist() == ["b"]


def test_provenance_fits_the_schema_and_reads_the_commit(monkeypatch):
    monkeypatch.setenv("UMUP_COMMIT", "abc123+dirty")
    monkeypatch.setattr(records, "_git", records._git.__wrapped__)
    told = records.provenance()
    RUNS.validate(make_row() | told)
    assert (told["git_commit"], told["git_dirty"]) == ("abc123", True)
    assert told["xla_flags"] == os.environ.get("XLA_FLAGS", "") and told["device_count"] >= 1
    assert json.dumps(told)


def test_git_sees_the_package_only_and_not_someone_elses_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("UMUP_COMMIT", raising=False)
    look = records._git.__wrapped__  # past the cache of one answer a process
    package = tmp_path / "lib"
    package.mkdir()
    (package / "records.py").write_text("x = 1\n")

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    assert look(package) == ("unknown", False)
    git("init", "-q")
    assert look(package) == ("unknown", False)  # not tracked: not its checkout
    git("add", ".")
    git("commit", "-qm", "m")
    commit, dirty = look(package)
    assert len(commit) == 40 and not dirty
    (tmp_path / "records").write_text("new results do not make the code dirty")
    assert look(package) == (commit, False)
    (package / "records.py").write_text("x = 2\n")
    assert look(package) == (commit, True)


def test_records_of_code_that_no_commit_has_are_refused_unless_asked_for(monkeypatch):
    for name in ("UMUP_COMMIT", "UMUP_DIRTY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(records, "_git", lambda: ("a" * 40, False))
    records.refuse_changes()
    monkeypatch.setattr(records, "_git", lambda: ("a" * 40, True))
    with pytest.raises(RecordError, match=r"not committed.*UMUP_DIRTY=1"):
        records.refuse_changes()
    for name, value in (("UMUP_DIRTY", "1"), ("UMUP_COMMIT", "abc+dirty")):
        with monkeypatch.context() as asked:
            asked.setenv(name, value)
            records.refuse_changes()


def test_a_store_over_another_knows_its_rows_and_never_writes_it(tmp_path):
    below = Store(tmp_path / "below")
    below.append([make_row("a")])
    below.points.append([make_point("p")])
    shards = sorted((tmp_path / "below").rglob("*.parquet"))
    over = Store(tmp_path / "over", beneath=below)
    assert over.keys() == {"a"} and over.points.keys() == {"p"}
    with over.claim("a") as mine:
        assert not mine, "it is on record beneath"
    over.append([make_row("b")])
    over.append([make_row("c")])
    over.points.append([make_point("q")])
    assert set(over.read()["key"]) == {"a", "b", "c"} and over.points.keys() == {"p", "q"}
    over.compact()
    assert Store(tmp_path / "over").keys() == {"b", "c"}, "what lies beneath is not copied"
    assert sorted((tmp_path / "below").rglob("*.parquet")) == shards and below.keys() == {"a"}
