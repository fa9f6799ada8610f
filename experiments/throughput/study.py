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
# # How fast is a training step, and where does its time go?
#
# **Question.** A library of rules is only used if it is not slower than the alternative. How does a step compare with
# `unit_scaling`'s {cite}`blake2024umup` in PyTorch, run eagerly and through `torch.compile`? How close is it to the
# limit set by the machine's matrix products? And which changes make it faster?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores and nothing else running, about eight minutes. PyTorch and unit-scaling come with
# `pip install 'umup[bench]'`; torch.compile needs a C++ compiler.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" measures what they lack
fresh: bool = False  # measure everything anew and keep no records
digits: int = 2  # decimals that are printed; with fewer than two no times are
n_layers: int = 4
d_head: int = 32  # at least two heads
ff_ratio: int = 4  # d_ff over width
vocab_size: int = 512
seq_len: int = 128
batch_size: int = 16
dtype: str = "float32"
widths: list = [32, 64, 128, 256]  # of the steps beside PyTorch
big_width: int = 0  # one more step, of its own depth
big_layers: int = 0
settings: list = ["blocked"]  # our own steps beside the plain one
references: list = ["eager", "compiled"]  # PyTorch: eager, compiled
compiled_widths: list = [64]  # where torch.compile runs, a minute each
samples: int = 13  # timed, the sides in turn
close_widths: list = [32, 64]  # of more samples
close_samples: int = 41
steps: int = 4  # a sample
tried: list = ["blocked", "no_rope", "scanned", "remat_dots", "remat_full", "remat_unrolled", "accumulate", "bfloat16", "wide_vectors", "fast_math", "no_library", "library_dots", "old_emitters"]  # changes to our step
tried_widths: list = [64]
parts_widths: list = [32, 256]  # where pieces of a step are timed
gemm_sizes: list = [512, 1024, 2048]  # square products, for the peak
depths: list = [2, 8, 32]  # for compile times
lanes: int = 8
lanes_at_once: int = 2
lane_width: int = 32
lane_steps: int = 50  # 0: no sweep of lanes
memory_width: int = 256  # 0: no resident memory
probed_widths: list = [32, 256]  # where a look of the probes is timed
workers: int = 0  # 0 measures in this process, on all cores
time_limit_minutes: float = 0.0
point_seconds: float = 16.0  # assumed, for the estimate

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("throughput")
design = study.settings("throughput", globals())
results = study.run_or_load("throughput", design)
Markdown(this.words.answer(results, design.digits))

# %% [markdown]
# ## What was measured
#
# Steps are timed as users run them: ours as a compiled chunk that draws its batches inside, layers unrolled;
# PyTorch's as zero the gradients, forward, backward, `unit_scaling.optim.AdamW`. Both decoders have equal width,
# depth, heads, vocabulary, length and batch, and both use all cores; PyTorch's has no rotary embedding. **All sides of a
# comparison take turns sample by sample in one process**, so that a drift of the machine's speed affects both. A ratio
# is the median over neighbouring samples; its 95 % interval is from order statistics.

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results, design.digits))

# %% tags=["remove-cell"]
for name, text in this.words.texts(results, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## Beside PyTorch

# %% tags=["hide-input", "picture", "claim:cpu-32", "claim:cpu-64", "claim:cpu-128", "claim:cpu-256", "claim:cpu-compiled"] mystnb={"figure": {"name": "fig-throughput-beside", "caption": "Time of a step against width, and its ratio to PyTorch's. With attention in blocks it is {glue:text}`ratio_32`, {glue:text}`ratio_64`, {glue:text}`ratio_128` and {glue:text}`ratio_256` of the eager time at widths 32, 64, 128 and 256; black bars are the bounds. Beside torch.compile at width 64: {glue:text}`compiled`."}, "image": {"alt": "Milliseconds per training step against width for umup and PyTorch, and their ratios with bounds"}}
this.figures.beside(results)

# %% [markdown]
# Tokens per second, the share of the machine's peak (floating-point operations by {meth}`umup.config.ModelConfig.step_flops`, over
# the best matrix product of the same run) and the memory that the compiled program takes:

# %% tags=["hide-input", "claim:cpu-peak", "claim:h100-peak", "claim:h100-fp8"]
Markdown(this.words.step_table(results, design.digits))

# %% [markdown]
# ## Where the time goes
#
# Each piece of the step is timed as a separate program, forward and backward at its size in the model, and multiplied by
# how often it occurs. A separate piece cannot be fused with its neighbours, so the sum is only close to the step's time.

# %% tags=["hide-input", "claim:cpu-products"] mystnb={"figure": {"name": "fig-throughput-where", "caption": "Shares of a step: {glue:text}`pieces_small`; {glue:text}`pieces_large`. Pieces beyond 100 % (black line) show what fusion saves."}, "image": {"alt": "Stacked bars of the shares of a training step's time by piece, one bar per width"}}
this.figures.where(results)

# %% [markdown]
# The optimizer's share bounds the gain from fusing its many small updates into one; the data's share that of a faster
# draw. Two findings of such a profile are in every step above: gate and up projection share one backward pass
# ({func}`umup.ops.gated_silu_pair`), where autodiff had padded each gradient with zeros and evaluated every sigmoid
# twice; and attention in causal blocks, which is an option because its rounding differs. Deferring softmax's
# normalization to the output and taking its backward sum from the output, as fused GPU kernels do, gained nothing on a
# CPU, and no axis order of the scores avoids the one product for which the library has no kernel.
#
# ## What was tried
#
# Every change is timed in turn with the plain step; recomputation of scanned layers with scanned layers. Its expected
# effect was written down first; trial runs had been seen for blocks and the compiler's options. Fast math should not be
# used: it drops the handling of infinities and NaN by which a diverged run is recognized.

# %% tags=["hide-input", "claim:blocks-pay", "claim:remat-time"] mystnb={"figure": {"name": "fig-throughput-tried", "caption": "Time of a step with each change over that without, with 95 % intervals, and as predicted. Best: {glue:text}`best`. Predicted to a tenth: {glue:text}`foreseen`."}, "image": {"alt": "Measured and predicted ratio of a step's time with each change, one row per change"}}
this.figures.changes(results)

# %% tags=["hide-input", "claim:remat-memory"]
Markdown(this.words.tried_table(results, design.digits))

# %% [markdown]
# ## Beyond the step
#
# A study consists of many short runs, so compile time matters, and so does whether runs share a program.

# %% tags=["hide-input", "claim:compile-depth", "claim:lanes-together", "claim:h100-lanes", "claim:memory"] mystnb={"figure": {"name": "fig-throughput-beyond", "caption": "Left: compiling the deepest model takes {glue:text}`growth` times as long as the shallowest. Right: as lanes of one program, a sweep comes to {glue:text}`lanes` times the runs per minute, {glue:text}`lanes_running` times without compiling. A process that trains at width 256 takes {glue:text}`memory` of PyTorch's memory."}, "image": {"alt": "Compile time against depth, and seconds of a sweep as separate runs and as lanes"}}
this.figures.beyond(results)

# %% [markdown]
# A probed run observes every tensor in a separate program:

# %% tags=["hide-input"]
Markdown(this.words.probes_table(results, design.digits))

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the run, in `claims.yaml`. After a first run the steps beside PyTorch were timed again, with
# a pause between samples and, at widths 32 and 64, more samples; recomputation, which saved nothing with layers
# unrolled, was timed with scanned layers. Quantities measured once, such as compile times, have no interval.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("throughput", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% [markdown]
# :::{admonition} Do this
# :class: takeaway
# - Run sweeps as lanes of one program. [lanes-together](claims.yaml)
# - Where layers are scanned, recompute whole blocks {cite}`chen2016sublinear`: on this CPU that takes at most 0.6
#   times the memory [remat-memory](claims.yaml) and at most 40 % more time [remat-time](claims.yaml). Unrolled it
#   saves neither, and up to eight layers are unrolled by default.
# - On a CPU keep float32, and try attention in causal blocks (`attention: blocked`); whether they save 3 % of a
#   step is open. [blocks-pay](claims.yaml)
#
# **Because** the remaining time is spent on elementwise work around small products in narrow models, and on the
# products themselves in wide ones [cpu-products](claims.yaml), where the library's kernels set the limit.
# :::
