"""Plans: the case of a run, what does not fit, what would, and `umup plan`."""

import json
import re
from dataclasses import replace

import pytest

from umup import cli, plan
from umup.config import MeshConfig, ModelConfig, OptimConfig
from umup.errors import ConfigError, PlanError
from umup.plan import aot, compiler, formulas, hardware

H100 = hardware.get("h100")
SEVEN = ModelConfig(
    d_model=4096,
    n_layers=32,
    d_head=128,
    d_ff=11008,
    vocab_size=32000,
    seq_len=4096,
    dtype="bfloat16",
    remat="full",
    attention="cudnn",
    recipe="bf16",
)
STEP = OptimConfig(steps=1000, batch_size=64, warmup_steps=100)
CONFIG = """
model: {d_model: 4096, n_layers: 32, d_head: 128, d_ff: 11008, vocab_size: 32000, seq_len: 4096,
        dtype: bfloat16, remat: full, attention: cudnn, recipe: bf16}
optim: {steps: 1000, batch_size: 64, warmup_steps: 100}
mesh: {fsdp: 8}
"""


def with_(config, **changes):
    return type(config).from_dict(config.to_dict() | changes)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "seven.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [("plain", (2, 2, 2, 0.0)), ("bf16", (2, 2, 2, 0.0)), ("fp8_seed", (1, 1, 1, 1.0))],
)
def test_a_case_has_the_bytes_of_the_recipe(recipe, expected):
    c = plan.case(with_(SEVEN, recipe=recipe), STEP, MeshConfig(fsdp=8), H100)
    assert (c.in_bytes, c.wide_bytes, c.weight_bytes, c.fp8_share) == expected
    assert c.memory == 80e9 and c.peak_flops == 989.4e12


def test_a_recipe_that_keeps_projections_wide():
    c = plan.case(with_(SEVEN, recipe="fp8_e5m2_grad"), STEP, MeshConfig(), H100)
    assert (c.in_bytes, c.wide_bytes) == (1, 2)
    d, ff, v, n = 4096, 11008, 32000, 32
    narrow = n * (3 * d * d + 2 * d * ff) + v * d
    assert c.fp8_share == pytest.approx(narrow / (n * (4 * d * d + 3 * d * ff) + v * d))


def test_float8_on_a_machine_without_it_runs_in_bfloat16():
    c = plan.case(with_(SEVEN, recipe="fp8_seed"), STEP, MeshConfig(), hardware.get("a100"))
    assert c.peak_fp8_flops == c.peak_flops == 312e12


def test_a_machine_without_products_of_the_type_is_refused():
    wide = with_(SEVEN, dtype="float32", recipe="plain", attention="xla")
    with pytest.raises(ConfigError, match=r"hardware: received 'tpu_v5p'; .*float32"):
        plan.case(wide, STEP, MeshConfig(), hardware.get("tpu_v5p"))


def test_what_fits_passes_and_what_does_not_names_the_excess():
    plan.check(SEVEN, STEP, MeshConfig(fsdp=8), H100)
    with pytest.raises(PlanError, match=r"211\.5 GiB per device.*143\.0 GiB too much") as error:
        plan.check(SEVEN, STEP, MeshConfig(), H100)
    assert "2 devices would do, as mesh 1×2×1" in str(error.value)


def test_an_uneven_mesh_is_refused():
    with pytest.raises(ConfigError, match=r"mesh\.tensor"):
        plan.check(SEVEN, STEP, MeshConfig(tensor=3), H100)


def test_the_nearest_change_fits_when_it_is_made():
    step = with_(STEP, batch_size=128)
    roomy = with_(SEVEN, remat="none")
    with pytest.raises(PlanError) as error:
        plan.check(roomy, step, MeshConfig(fsdp=8), H100)
    found = re.search(r"(model|optim)\.(\w+) (\w+) fits", str(error.value))
    assert found
    if found[1] == "model":
        roomy = with_(roomy, **{found[2]: found[3]})
    else:
        step = with_(step, **{found[2]: int(found[3])})
    plan.check(roomy, step, MeshConfig(fsdp=8), H100)


def test_layouts_are_ranked():
    c = plan.case(SEVEN, STEP, MeshConfig(), H100)
    ranked = plan.layouts(c, 8)
    seconds = [formulas.step_time(one.case).seconds for one in ranked]
    assert seconds == sorted(one.seconds for one in ranked) and len(seconds) > 1
    with pytest.raises(PlanError, match=r"devices: received 1; .*2 devices would do"):
        plan.layouts(c, 1)
    with pytest.raises(PlanError, match=r"devices: received 7; .*divides batch_size"):
        plan.layouts(c, 7)


def test_a_budget_spends_its_hours():
    c = plan.case(SEVEN, STEP, MeshConfig(), H100)
    bought = plan.budget(c, 8, 24.0, inference_tokens=1e12)
    assert bought.tokens >= 20 * formulas.parameters(bought.case).total
    steps = bought.tokens / (64 * 4096)
    assert plan.predict(bought.case, 1).step.seconds * steps == pytest.approx(24 * 3600)
    sizes = {name: one.parameters for name, one in bought.allocations.items()}
    assert sizes["over-trained"] < sizes["Chinchilla"] < sizes["Kaplan"]
    for one in bought.allocations.values():
        assert 6 * one.parameters * one.tokens == pytest.approx(bought.flops)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hours": 0.0}, "hours: received 0.0"),
        ({"hours": float("nan")}, "hours"),
        ({"hours": 1e-3}, r"hours: received 0\.001; allowed: more: .* two layers"),
        ({"devices": 0}, "devices: received 0"),
        ({"tokens_per_parameter": -1.0}, "tokens_per_parameter: received -1.0"),
        ({"inference_tokens": -1.0}, "inference_tokens: received -1.0"),
    ],
)
def test_an_impossible_budget(changes, message):
    c = plan.case(SEVEN, STEP, MeshConfig(), H100)
    given = {"devices": 8, "hours": 2.0} | changes
    with pytest.raises(PlanError, match=message):
        plan.budget(c, **given)


def test_the_command_describes_a_run(config, capsys):
    assert cli.main(["plan", config, "--hardware", "h100"]) == 0
    text = capsys.readouterr().out
    c = plan.case(SEVEN, STEP, MeshConfig(fsdp=8), H100)
    assert "parameters: 6.74 G" in text and "fits in 68.5" in text
    assert f"MFU {formulas.step_time(c).mfu:.1%}" in text


def test_the_command_as_json_and_on_other_devices(config, capsys):
    assert cli.main(["plan", config, "--devices", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = plan.layouts(plan.case(SEVEN, STEP, MeshConfig(), H100), 16)[0]
    assert found["step"]["seconds"] == pytest.approx(best.seconds)
    assert cli.main(["plan", config, "--devices", "16", "--layouts"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("mesh") and f"{1e3 * best.seconds:.2f}" in rows[1]


def test_the_command_spends_a_budget(config, capsys):
    arguments = ["plan", config, "--devices", "8", "--hours", "2", "--inference-tokens", "1e12"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "2 hours on 8 × h100" in text and "over-trained" in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-p", "mesh.fsdp", "1"], "143.0 GiB too much"),
        (["--hardware", "h1000"], "did you mean 'h100'"),
        (["--devices", "0"], "--devices: received 0"),
        (["--hours", "-1"], "hours: received -1.0"),
        (["-p", "model.depth", "3"], "depth"),
        (["--machines", "none.toml"], "a TOML file"),
        (["--hours", "1", "--layouts"], "--layouts: received 'beside --hours'"),
        (["--hours", "1", "--compile"], "--compile: received 'beside --hours'"),
        (["--layouts", "--compile"], "--compile: received 'beside --layouts'"),
        (["--tokens-per-parameter", "30"], "--tokens-per-parameter: received 30.0"),
        (["--layouts", "--inference-tokens", "0"], "allowed: a number beside --hours"),
        (["--devices", "16", "-p", "mesh.data", "4"], "-p mesh.data: received 4"),
        (["--devices", "16", "-p", "mesh", "{data: 4}"], "allowed: one field at a time"),
        (["--devices", "16", "-p", "model.remat", "none"], "-p model.remat: received 'none'"),
        (["--layouts", "-p", "optim.accumulate", "2"], "-p optim.accumulate: received 2"),
        (["--hours", "1", "-p", "optim.steps", "200"], "-p optim.steps: received 200"),
        (["--hours", "1e300"], "hours: received 1e+300; allowed: a number in [1e-06, 1e+09]"),
        (["--devices", "1000000007"], "devices: received 1000000007; allowed: an integer from 1"),
        (["--devices", "999983"], "heads, d_ff and vocabulary, such as 64"),
        (["-p", "model.n_layers", "100000000"], "nothing near fits"),
        (["-p", "optim.steps", "9" * 90], "optim.steps: received 999"),
        (["-p", "mesh.fsdp", "999999936", "-p", "optim.batch_size", "999999937"], "such as 1"),
    ],
)
def test_what_the_command_refuses(config, capsys, more, message):
    assert cli.main(["plan", config, *more]) == 1
    assert message in capsys.readouterr().err


def test_a_machines_file_beside_another_machine_is_refused(config, capsys, tmp_path):
    own = tmp_path / "own.toml"
    fields = ("tflops_bfloat16", "memory_gb", "memory_gb_s", "link_gb_s", "network_gb_s")
    own.write_text("[big]\n" + "\n".join(f"{name} = 1000" for name in fields))
    assert cli.main(["plan", config, "--machines", str(own), "--hardware", "big"]) == 0
    assert cli.main(["plan", config, "--machines", str(own)]) == 1
    assert "hardware: received 'h100'; allowed: a machine of " in capsys.readouterr().err


def test_a_chosen_layout_says_what_it_replaces(config, capsys):
    assert cli.main(["plan", config, "--devices", "16"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "on 16 devices; the run's is mesh 1×8×1, remat full" in last
    assert cli.main(["plan", config, "--devices", "8"]) == 0
    assert "the run's is" not in capsys.readouterr().out


def test_a_budget_says_what_bounds_it(capsys):
    """5000 hours of one device: memory ends before the hours do."""
    arguments = ["plan", "--hours", "5000", "--devices", "1"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    each = found["tokens"] / found["parameters"]["total"]
    assert found["bound"] == "memory" and each > 30
    assert f"{each:.3g} tokens per parameter (20 asked); limited by memory" in text


def test_blocks_whose_linears_are_named_count_once():
    keep = ("blocks.0.attn.qkv", "blocks.2.attn.qkv", "mlp.gate_up")
    model = with_(SEVEN, n_layers=4, recipe="fp8_seed", keep_bf16=keep)
    share = plan.precision(model).float8
    assert share == {"qkv": 0.5, "out": 1.0, "gate_up": 0.0, "down": 1.0, "readout": 1.0}
    every = tuple(f"blocks.{i}.attn.out" for i in range(4))
    assert plan.precision(with_(model, keep_bf16=every)).float8["out"] == 0.0
    with pytest.raises(ConfigError, match=r"keep_bf16: received 'blocks\.4\.attn\.qkv'"):
        with_(model, keep_bf16=("blocks.4.attn.qkv",))


def test_advice_that_needs_another_batch_names_it():
    lone = with_(STEP, batch_size=1)
    c = plan.case(SEVEN, lone, MeshConfig(), H100)
    advice = plan.nearest(c)
    found = re.fullmatch(r"(\d+) devices would do, as .*, optim\.batch_size (\d+)", advice)
    assert found, advice
    devices, batch = map(int, found.groups())
    plan.layouts(replace(c, batch_size=batch), devices)


def test_a_family_without_a_layout_says_what_its_widths_are():
    c = plan.case(SEVEN, STEP, MeshConfig(), H100)
    with pytest.raises(PlanError, match=r"devices: received 8; .* multiples of 128 and of d_head"):
        plan.budget(replace(c, d_head=4099), 8, 1.0)
    with pytest.raises(PlanError, match=r"hours: received 1e-06; allowed: more: one step takes"):
        plan.budget(c, 8, 1e-6, tokens_per_parameter=1e-3)


def test_the_compiled_step_beside_the_plan(tmp_path, capsys, monkeypatch):
    seen = []
    real = aot.compiled

    def compiled(job, **options):
        seen.append(real(job, **options))
        return seen[0]

    monkeypatch.setattr(aot, "compiled", compiled)
    monkeypatch.setattr(compiler, "available", lambda: False)
    path = tmp_path / "small.yaml"
    path.write_text(
        "model: {d_model: 256, n_layers: 4, d_head: 64, d_ff: 704, vocab_size: 1024,\n"
        "  seq_len: 256, dtype: bfloat16, remat: dots, attention: cudnn}\n"
        "optim: {steps: 10, warmup_steps: 1, batch_size: 16}\nmesh: {fsdp: 2, data: 2}\n"
    )
    assert cli.main(["plan", str(path), "--compile"]) == 0
    text = capsys.readouterr().out
    assert "attention xla for cudnn" in text and "all-gather" in text
    assert "beside the plan for that backend (for the GPU's own: make gpu-compiler)" in text
    rows = dict(
        re.findall(r"^(parameters, all|\w+, GiB|\w+ \w+, GiB|TFLOP) .* ([\d.]+)$", text, re.M)
    )
    assert float(rows["parameters, all"]) == 1.0
    assert float(rows["TFLOP"]) == pytest.approx(1.0, abs=0.03)
    assert float(rows["all memory, GiB"]) == pytest.approx(1.0, abs=0.15)
    assert float(rows["over fsdp, GiB"]) == pytest.approx(1.0, abs=0.15)
    shape = {"d_model": 256, "n_layers": 4, "d_ff": 704, "vocab_size": 1024}
    c = plan.case(ModelConfig.from_dict(shape), STEP, MeshConfig(), H100)
    assert formulas.parameters(c).total == seen[0].n_params


@pytest.mark.gpu_compiler
def test_the_step_compiled_for_h100s_beside_the_plan(tmp_path, capsys):
    path = tmp_path / "small.yaml"
    path.write_text(
        "model: {d_model: 512, n_layers: 4, d_head: 64, d_ff: 1408, vocab_size: 4096,\n"
        "  seq_len: 512, dtype: bfloat16, remat: full, attention: cudnn}\n"
        "optim: {steps: 10, warmup_steps: 1, batch_size: 16}\nmesh: {fsdp: 2, data: 2}\n"
    )
    assert cli.main(["plan", str(path), "--compile"]) == 0
    text = capsys.readouterr().out
    assert "compiled for 4 × h100 that need not be there by XLA's GPU backend in" in text
    assert "attention xla" not in text and "reduce-scatter" in text
    rows = dict(re.findall(r"^(parameters, all|\w+ \w+, GiB|\w+, GiB) .* ([\d.]+)$", text, re.M))
    assert float(rows["parameters, all"]) == 1.0
    assert float(rows["all memory, GiB"]) == pytest.approx(1.0, abs=0.1)
    for axis in ("fsdp", "data"):
        assert float(rows[f"over {axis}, GiB"]) == pytest.approx(1.0, abs=0.05)
