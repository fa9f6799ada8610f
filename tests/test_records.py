"""Records: nothing lost, nothing half-written, nothing measured twice."""

from __future__ import annotations

import errno
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

from umup import records
from umup.config import NUMERICS
from umup.errors import RecordError
from umup.records import Store
from umup.schemas import RUNS, SCHEMA


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
        (lambda t: t.set_column(len(RUNS.columns) - 1, "schema", pa.array([99])), r"schema \[99\]"),
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
    preamble += "from umup.records import Store; from test_records import make_row\n"
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
    assert [p.name for p in (tmp_path / ".locks").iterdir()] == ["store"]


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


def test_a_claim_needs_a_plain_key(tmp_path):
    with pytest.raises(RecordError, match="key"), Store(tmp_path).claim("a/b"):
        pass


@pytest.mark.parametrize("survivors", range(4))
def test_compact_killed_at_any_step_loses_nothing(tmp_path, monkeypatch, survivors):
    store = Store(tmp_path)
    for i in range(3):
        store.append([make_row(f"k{i}")])
    (tmp_path / ".stray.parquet.tmp").write_bytes(b"half a shard")
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
