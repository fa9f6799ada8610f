"""`umup train`: a run's file, its folder, its forks, its exit status, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import yaml

from bigrun import PLAIN, config_of, dataset_of, on_the_first_devices, trajectory
from umup import cli
from umup.config import ConfigError
from umup.errors import TrainError
from umup.run import loop, runlog
from umup.run.runfile import TrainConfig, fork, held, read_config

same = pd.testing.assert_frame_equal


class Place(NamedTuple):
    """A folder with a run's file and a corpus, and `umup train` in it."""

    root: Path
    file: Path

    def train(self, *argv: str, run: str = "r") -> int:
        return cli.main(["train", str(self.file), "--run", str(self.root / run), *argv])


def small(*argv: object) -> list[str]:
    """Arguments that change fields: name, value, name, value …"""
    pairs = zip(argv[::2], argv[1::2])
    return [text for name, value in pairs for text in ("-p", str(name), str(value))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """With a finished run in ``r``: 80 updates, a plateau from 5 to 60, every 16th kept."""
    root = tmp_path_factory.mktemp("train")
    text = "\n".join(f"{n} bottles of beer on the wall, {n % 7} more" for n in range(400))
    (root / "beer.txt").write_text(text, encoding="utf-8")
    plain = PLAIN | {"corpus": f"file:{root / 'beer.txt'}", "keep": 9}
    plain["model"] = PLAIN["model"] | {"vocab_size": 256}
    file = root / "r.yaml"
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UMUP_CACHE", str(root / "cache"))
        on_the_first_devices(patch)
        here = Place(root, file)
        assert here.train() == 0
        yield here


def refused(capsys, status: int) -> str:
    """What was said by a command that must have ended with status 1 and one line."""
    err = capsys.readouterr().err
    line = err.splitlines()[-1]
    assert status == 1 and line.startswith("umup: ") and "Traceback" not in err
    return line


# --- the file -------------------------------------------------------------------------------------


def test_a_file_is_all_there_is_to_a_run(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text("optim: {steps: 3000}\nmesh: {fsdp: 2}\n", encoding="utf-8")
    config = read_config(path, {"optim.batch_size": 8, "recovery.on": False, "seed": 3})
    assert (config.name, config.optim.steps, config.optim.batch_size) == ("big", 3000, 8)
    assert (config.mesh.fsdp, config.recovery.on, config.seed) == (2, False, 3)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "optim: {step: 3}",
            "step: received 3; allowed: one of the fields of OptimConfig: steps, ",
        ),
        (
            "chunks: 3",
            "chunks: received 3; allowed: one of the fields of TrainConfig: name, scheme, ",
        ),
        ("loader: cloud", "loader: received 'cloud'; allowed: device | host"),
        ("chunk_steps: 0", "chunk_steps: received 0; allowed: a number in [1, 100000]"),
        (
            "optim: {steps: 9, warmup_steps: 10}",
            "warmup_steps: received 10; allowed: at most steps",
        ),
        (
            "optim: {schedule: wsd, steps: 9, warmup_steps: 2, decay_steps: 8}",
            "decay_steps: received 8; allowed: 1 to 7, what 9 steps leave",
        ),
        (
            "optim: {batch_size: 8, accumulate: 3}",
            "accumulate: received 3; allowed: a divisor of bat",
        ),
        ("recovery: {patience: 99}", "patience: received 99; allowed: at most half the window"),
        (
            "seed: 1\noptim:\n  steps: 5\n  warmup_steps: 1:30",
            "r.yaml, line 4: optim.warmup_steps: received '1:30'; allowed: a value of type int",
        ),
        (
            "seed: 1\noptim:\n  steps: 5",
            "r.yaml, line 2: optim.warmup_steps: received 2000; allowed",
        ),
        (
            "optim: {steps: 5, warmup_steps: 1}\noptim: {clip: 1}",
            "r.yaml, line 2: received 'optim'; ",
        ),
        ("optim: {steps: 0100}", "optim.steps: received '0100'; allowed: a value of type int"),
        ("optim: {steps: 60.0}", "optim.steps: received 60.0; allowed: a value of type int"),
        ("optim: {steps: [60]}", "optim.steps: received (60,); allowed: a value of type int"),
        (
            "optim: {steps: 1e999}",
            "r.yaml, line 1: received '1e999'; allowed: a number that float64",
        ),
        ("model: {rope: 'true'}", "model.rope: received 'true'; allowed: a value of type bool"),
        ("recovery: {on: off}", "r.yaml, line 1: received 'off'; allowed: true or false"),
        ("hps: {Eta: 1}", "r.yaml, line 1: hps.Eta: received 1; allowed: one of the fields of HPs"),
        ("hps: {eta: .nan}", "hps.eta: received nan; allowed: a finite number > 0"),
        ("seed: 1" + "0" * 99, "allowed: an integer that 64 bits can hold"),
        ("seed: 2147483648", "r.yaml, line 1: seed: received 2147483648; allowed: a number in [0"),
        ("optim:", "r.yaml, line 1: optim: received None; allowed: a value of type OptimConfig"),
        (
            "name: a/b",
            "r.yaml, line 1: name: received 'a/b'; allowed: a name that a folder can have",
        ),
        ("name: ''", "name: received ''; allowed: a name that a folder can have"),
        ("chunk_steps: 100001", "chunk_steps: received 100001; allowed: a number in [1, 100000]"),
        ("wandb: false", "wandb: received False; allowed: a value of type str | None"),
        ("[]", "received 'list'; allowed: a mapping"),
        ("0", "received 'int'; allowed: a mapping"),
        ("- 1", "received 'list'; allowed: a mapping"),
        ("a: [", "allowed: a readable YAML file"),
        ("\xff", "allowed: a readable YAML file"),
    ],
)
def test_a_file_that_will_not_do(tmp_path, capsys, text, said):
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert said in refused(capsys, cli.main(["train", str(path)]))


def test_no_file_and_no_such_group(tmp_path, capsys):
    said = refused(capsys, cli.main(["train", str(tmp_path / "none.yaml")]))
    assert "No such file" in said and "a readable YAML file" in said
    path = tmp_path / "r.yaml"
    path.write_text("seed: 1", encoding="utf-8")
    said = refused(capsys, cli.main(["train", str(path), "-p", "seed.low", "1"]))
    assert "seed.low: received 1; allowed: a field of seed, which is no group" in said
    said = refused(capsys, cli.main(["train", str(path), "-p", "optim", "{steps: 9}"]))
    assert "optim: received {'steps': 9}; allowed: one field at a time, such as optim.steps" in said
    said = refused(capsys, cli.main(["train", str(path), "-p", "seed", "x"]))
    assert said.startswith("umup: seed: received 'x'")  # not of the file: no line


def test_what_is_written_is_what_is_read(tmp_path):
    path = tmp_path / "2024-01-31.yaml"
    path.write_text(
        "recovery: {on: false}\nhps: {eta: 5e-1, weight_decay: 0}\noptim: {steps: 1_000, "
        "warmup_steps: 10}\ncorpus: 0100\nwandb:\ntensorboard: True\n"
    )
    config = read_config(path)
    assert (config.name, config.corpus, config.recovery.on) == ("2024-01-31", "0100", False)
    assert (config.hps.eta, config.hps.weight_decay, config.optim.steps) == (0.5, 0.0, 1000)
    assert (config.wandb, config.tensorboard) == (None, True)


# --- before any compute ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            ("mesh.fsdp", 3),
            "mesh.data × mesh.fsdp: received 3; allowed: a divisor of batch_size = 8, such as 2",
        ),
        (("mesh.data", 16), "mesh.data: received 16; allowed: a divisor of batch_size = 8"),
        (("mesh.data", 8, "optim.accumulate", 2), "a divisor of batch_size / accumulate = 4"),
        (
            ("mesh.tensor", 3),
            "mesh.tensor: received 3; allowed: a divisor of n_heads = 2, such as 2",
        ),
        (
            ("mesh.fsdp", 8, "model.d_model", 20, "model.d_head", 10),
            "mesh.fsdp: received 8; allowed: a divisor of d_model = 20, such as 5",
        ),
        (("mesh.tensor", 2, "model.d_ff", 33), "a divisor of d_ff = 33, such as 1"),
        (("mesh.tensor", 2, "model.vocab_size", 257), "a divisor of vocab_size = 257, such as 1"),
        (
            ("mesh.data", 8, "mesh.tensor", 2),
            "mesh: received '8×1×2'; allowed: axes whose product "
            "is 8, the number of devices, such as 8×1×1",
        ),
        (
            ("model.vocab_size", 255),
            "model.vocab_size: received 255; allowed: at least 256, the vocabulary of bytes",
        ),
        (("hps.alpha_emb", 2.0), "alpha_emb: received 2.0; allowed: "),
        (("corpus", "file:nowhere"), "nowhere"),
        (("model.seq_len", 10**6), "seq_len: received 1000000; allowed: at most"),
        (
            ("optim.steps", 2**29 + 1),
            "optim.steps: received 536870913; allowed: at most 536,870,912",
        ),
        (
            ("model.attention", "cudnn", "model.dtype", "bfloat16"),
            "model.attention: received 'cudnn'; allowed: xla | blocked on cpu",
        ),
    ],
)
def test_what_cannot_be_trained(place, capsys, monkeypatch, fields, said):
    monkeypatch.setattr(loop, "train_run", lambda *_, **__: pytest.fail("training started"))
    assert said in refused(capsys, place.train("--check", *small(*fields)))


def test_check_trains_nothing(place, capsys):
    assert place.train("--check", run="unborn") == 0
    # 2·256·16 of the vocabulary, 2 blocks of 4·16² + 3·16·32.
    assert capsys.readouterr().out == "r: 13,312 parameters, mesh 1×1×1, 80 steps of 128 tokens\n"
    assert not (place.root / "unborn").exists()


def test_check_elsewhere_needs_no_devices(place, capsys):
    many = ("-p", "mesh.fsdp", "16", "-p", "optim.batch_size", "16")
    assert "mesh: received '1×16×1'" in refused(capsys, place.train("--check", *many))
    assert place.train("--check", "--elsewhere", *many, run="unborn") == 0
    fused = ("-p", "model.dtype", "bfloat16", "-p", "model.attention", "cudnn")
    assert "cudnn" in refused(capsys, place.train("--check", *fused))
    assert place.train("--check", "--elsewhere", *fused, run="unborn") == 0
    indivisible = ("--elsewhere", "-p", "mesh.fsdp", "3")
    assert "mesh.fsdp" in refused(capsys, place.train("--check", *indivisible))
    assert "--elsewhere" in refused(capsys, place.train("--elsewhere"))


def test_check_sees_what_a_start_would(place, capsys, monkeypatch):
    before = sorted(place.root.rglob("*"))
    said = refused(capsys, place.train("--check", *small("seed", 1)))
    assert "another run's folder: seed 0 there, 1 here" in said
    said = refused(capsys, place.train("--check", "--from", "17"))
    assert "--from: received 17; allowed: a checkpoint's step: 16, 32, 48, 64, 80" in said
    assert place.train("--check", "--from", "16") == 0
    said = refused(capsys, place.train("--check", run="r.yaml/r"))
    assert "a folder that can be written" in said
    for field, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, package, None)
        value = "true" if field == "tensorboard" else "project"
        said = refused(capsys, place.train("--check", *small(field, value), run="unborn"))
        assert f"the package {package}" in said
    assert sorted(place.root.rglob("*")) == before


@pytest.mark.parametrize("field", ["tensorboard", "wandb"])
def test_a_missing_extra_is_named(place, capsys, monkeypatch, field):
    package = {"tensorboard": "tensorboardX"}.get(field, field)
    monkeypatch.setitem(sys.modules, package, None)
    value = "true" if field == "tensorboard" else "project"
    said = refused(capsys, place.train(*small(field, value), run=f"no-{field}"))
    assert f"the package {package}: pip install 'umup[telemetry]'" in said


# --- the folder -----------------------------------------------------------------------------------


def test_a_folder_says_whose_it_is(place, capsys):
    told = json.loads((place.root / "r" / "run.json").read_text(encoding="utf-8"))
    config = read_config(place.file)
    assert TrainConfig.from_dict(told["config"]) == config
    assert told["run"]["optim"]["steps"] == 80
    said = refused(capsys, place.train(*small("seed", 1, "optim.batch_size", 4)))
    assert "another run's folder: optim.batch_size 8 there, 4 here; seed 0 there, 1 here" in said
    assert "the same run, or another folder (--run)" in said
    said = refused(capsys, place.train(*small("recovery.margin", 7)))
    assert "recovery.margin 6 there, 7 here" in said
    # What leaves the numbers alone may change.
    assert place.train(*small("keep", 8, "loader", "host", "chunk_steps", 8)) == 0


def test_a_folder_begun_when_one_layer_at_a_time_was_the_default_goes_on(place, capsys):
    path = place.root / "r" / "run.json"
    before = path.read_text(encoding="utf-8")
    told = json.loads(before)
    told["run"]["model"]["unroll"] = 1
    path.write_text(json.dumps(told), encoding="utf-8")
    assert place.train() == 0
    told["run"]["model"]["unroll"] = 0
    path.write_text(json.dumps(told), encoding="utf-8")
    assert "model.unroll 0 there, None here" in refused(capsys, place.train())
    path.write_text(before, encoding="utf-8")


def test_a_folder_begun_before_a_field_came_goes_on_at_its_default(place, capsys):
    path = place.root / "r" / "run.json"
    before = path.read_text(encoding="utf-8")
    told = json.loads(before)
    assert told["run"]["optim"].pop("loss_scale") == 1.0
    path.write_text(json.dumps(told), encoding="utf-8")
    assert place.train() == 0
    said = refused(capsys, place.train(*small("optim.loss_scale", 2)))
    assert "another run's folder: optim.loss_scale 1.0 there, 2.0 here" in said
    path.write_text(before, encoding="utf-8")


def test_text_that_moved_is_gone_on_with_and_other_text_is_not(place, capsys):
    """By a run that ends when it is first asked to."""
    text, moved = place.root / "moving.txt", place.root / "moved" / "renamed.txt"
    text.write_text((place.root / "beer.txt").read_text("utf-8"), encoding="utf-8")
    assert place.train("--minutes", "-1", *small("corpus", f"file:{text}"), run="moving") == 75
    moved.parent.mkdir()
    text.rename(moved)
    assert "file:PATH" in refused(
        capsys, place.train(*small("corpus", f"file:{text}"), run="moving")
    )
    assert place.train(*small("corpus", f"file:{moved}"), run="moving") == 0
    same(trajectory(place.root / "moving"), trajectory(place.root / "r"))

    other = place.root / "other.txt"
    other.write_text(moved.read_text("utf-8") + "\none more", encoding="utf-8")
    said = refused(capsys, place.train(*small("corpus", f"file:{other}"), run="moving"))
    assert "another run's folder: data_digest " in said and "corpus" not in said
    assert "another run's folder: corpus file: there, sotu here" in refused(
        capsys, place.train(*small("corpus", "sotu"), run="moving")
    )


@pytest.mark.parametrize("content", ['{"run": 3}', "[]", "\xff", "{"])
def test_a_run_json_of_another_kind_is_refused(place, capsys, content):
    folder = place.root / "odd"
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(content, encoding="latin-1")
    assert "run.json: received 'damaged'" in refused(capsys, place.train(run="odd"))


def test_a_damaged_run_json_is_refused(place, capsys):
    folder = place.root / "torn"
    folder.mkdir()
    (folder / "run.json").write_text('{"run"', encoding="utf-8")
    assert "run.json: received 'damaged'" in refused(capsys, place.train(run="torn"))


def test_a_folder_that_cannot_be_made_is_refused(place, capsys):
    (place.root / "file").write_text("", encoding="utf-8")
    assert "a writable folder; nothing was begun" in refused(capsys, place.train(run="file"))


def test_a_folder_is_held_by_one(tmp_path):
    config, dataset = config_of(), dataset_of()
    with held(config, tmp_path, dataset):
        refusal = pytest.raises(TrainError, match=f"in use by process {os.getpid()}")
        with refusal, held(config, tmp_path, dataset):
            pytest.fail("two hold one folder")
        assert (tmp_path / "lock").read_text() == f"process {os.getpid()}"
    with held(config, tmp_path, dataset):  # and is free again
        pass


@pytest.mark.usefixtures("alike")
def test_a_run_of_its_own_process(place, capsys):
    """Refuses a second at its folder, ends with 75 on SIGTERM, and is gone on with."""
    argv = [
        sys.executable,
        "-m",
        "umup.cli",
        "train",
        str(place.file),
        "--run",
        str(place.root / "own"),
    ]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "UMUP_CACHE": str(place.root / "cache")}
    process = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True)
    try:
        deadline, log = time.monotonic() + 120, place.root / "own" / "log.jsonl"
        while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        said = refused(capsys, place.train(run="own"))
        assert f"in use by process {process.pid}'; allowed: a folder that no other run" in said
        process.send_signal(signal.SIGTERM)  # it is compiling: it ends after the first chunk
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == loop.EXIT_RESUME == 75, err
    (end,) = runlog.events(log, "end")
    assert (end["verdict"], end["reason"]) == ("stopped", "SIGTERM")
    assert (log.parent / "checkpoints" / str(end["step"])).is_dir() and end["step"] < 80
    assert place.train(run="own") == 0
    same(trajectory(log), trajectory(place.root / "r"))


# --- exit status and checkpoints ------------------------------------------------------------------


def test_out_of_time_is_75_and_giving_up_76(place, capsys):
    assert place.train("--minutes", "1e-9", run="late") == 75
    assert trajectory(place.root / "late")["step"].tolist() == [*range(8)]
    # Weights that η has made infinite give no finite loss, whatever the batch.
    assert (
        place.train(*small("hps.eta", "1.0e+30", "recovery.max_interventions", 2), run="bad") == 76
    )
    (end,) = runlog.events(place.root / "bad", "end")
    assert end["verdict"] == "gave up"
    assert "(non-finite) at step 1 after 2 interventions, the most allowed" in end["reason"]


def test_from_a_checkpoint_or_none(place, capsys):
    said = refused(capsys, place.train("--from", "30"))
    assert "step: received 30; allowed: a checkpoint's: 16, 32, 48, 64, 80" in said
    assert "no checkpoint" in refused(capsys, place.train("--from", "16", run="empty"))
    folder = place.root / "hurt"
    shutil.copytree(place.root / "r", folder)
    for path in (folder / "checkpoints" / "80" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    said = refused(capsys, place.train(run="hurt"))
    assert "damaged" in said and "older: 16, 32, 48, 64; `--from 64` goes on" in said
    assert place.train("--from", "64", run="hurt") == 0
    same(trajectory(folder), trajectory(place.root / "r"))


# --- forks ----------------------------------------------------------------------------------------


def test_a_fork_is_the_run_that_was_never_forked(place):
    assert place.train("--fork", "48", "--decay", "12") == 0
    assert place.train(*small("optim.steps", 60, "optim.decay_steps", 12), run="whole") == 0
    forked, whole = (trajectory(place.root / name) for name in ("r-48+12", "whole"))
    assert forked["step"].tolist() == [*range(48, 60)]
    same(forked, whole[48:].reset_index(drop=True))
    losses = [runlog.events(place.root / n, "end")[-1]["val_loss"] for n in ("r-48+12", "whole")]
    assert losses[0] == losses[1]
    assert runlog.events(place.root / "r-48+12", "resume")[0]["forked_from"] == "r"

    # The same command goes on with it, though the plateau's checkpoint is gone.
    for step in ("48", "64"):
        shutil.move(place.root / "r/checkpoints" / step, place.root / step)
    try:
        assert place.train("--fork", "48", "--decay", "12", "--from", "48") == 0
    finally:
        for step in ("48", "64"):
            shutil.move(place.root / step, place.root / "r/checkpoints" / step)
    same(trajectory(place.root / "r-48+12"), forked)

    # A fork of the fork, and the fork of its length.
    fields = small("optim.steps", 60, "optim.decay_steps", 12)
    assert place.train(*fields, "--fork", "48", "--decay", "8", run="r-48+12") == 0
    assert place.train("--fork", "48", "--decay", "8") == 0
    same(trajectory(place.root / "r-48+12-48+8"), trajectory(place.root / "r-48+8"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--fork", "64", "--decay", "8"), "received 64; allowed: a step of the plateau, 5 to 60"),
        (("--fork", "4", "--decay", "8"), "received 4; allowed: a step of the plateau, 5 to 60"),
        (
            ("--fork", "40", "--decay", "8"),
            "fork: received 40; allowed: a checkpoint of r on its plateau: 16, 32, 48",
        ),
        (("--fork", "48", "--decay", "0"), "decay_steps: received 0; allowed: 1 to 43"),
        (
            ("--fork", "48", "--decay", "-3"),
            "decay_steps: received -3; allowed: a finite number >= 0",
        ),
        (("--fork", "48"), "--fork: received 48; allowed: a step, together with --decay STEPS"),
        (("--decay", "8"), "--fork: received None; allowed: a step, together with --decay STEPS"),
        (
            (
                "--fork",
                "48",
                "--decay",
                "8",
                *small("optim.schedule", "cosine", "optim.decay_steps", 0),
            ),
            "fork: received 'schedule cosine'; allowed: a run with optim.schedule wsd or wsd_sqrt",
        ),
    ],
)
def test_forks_that_cannot_be(place, capsys, argv, said):
    assert said in refused(capsys, place.train(*argv))


def test_a_fork_keeps_all_but_its_length(tmp_path):
    config, dataset = config_of(hps={"eta": 0.5}), dataset_of()
    (tmp_path / "r" / "checkpoints" / "32").mkdir(parents=True)
    forked, origin = fork(config, tmp_path / "r", 32, 10, dataset)
    assert (forked.optim.steps, forked.optim.decay_steps, forked.name) == (42, 10, "r-32+10")
    assert (forked.hps, forked.recovery, forked.model) == (
        config.hps,
        config.recovery,
        config.model,
    )
    assert (origin.step, origin.key) == (32, config.key(dataset))
    assert (origin.folder, origin.into) == (tmp_path / "r", tmp_path / "r-32+10")
    with pytest.raises(ConfigError, match="decay_steps"):
        fork(config, tmp_path / "r", 32, 0, dataset)
