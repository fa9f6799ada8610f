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
# # Does the learning rate transfer?
#
# **Question.** A learning rate is tuned on a narrow model and used on a wide one. How far is it from the wide
# model's own optimum under the standard parametrization (SP), μP {cite}`yang2022tensor5` and u-μP
# {cite}`blake2024umup`, all with their other hyperparameters at the defaults? And whose loss is lower?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, about two hours and a half: widths 32 to 256 at 2000 steps, and two further horizons.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" trains what they lack
fresh: bool = False  # train everything anew and keep no records
digits: int = 2  # decimals that are printed
corpus: str = "sotu"
tokenizer: str = "bytes"
schemes: list = ["sp", "mup", "umup"]
widths: list = [32, 64, 128, 256]
full_grid_width: int = 128  # above it, the grid is moved to the predicted optimum
n_layers: int = 2
d_head: int = 32
ff_ratio: float = 2.75  # d_ff / d_model
seq_len: int = 64
batch_size: int = 8
steps: int = 2000
short_steps: int = 500  # further horizons, 0 for none
short_widths: list = [32, 64, 128]
long_steps: int = 8000
long_widths: list = [64]
warmup_ratio: float = 0.25
weight_decay: float = 2.0**-13
base_width: int = 32  # where μP equals SP
dtype: str = "float32"
unroll: int = 0
lr_sp: list = [-12, -4]  # log2 of the coarse grid's ends
lr_mup: list = [-11, -4]
lr_umup: list = [-5, 3]
refine: float = 0.5  # octaves between points near the optimum
window: float = 1.0  # octaves around the best in which all seeds run
seeds: int = 3
deciding: list = ["mup", "umup"]  # with more seeds at the best of the main horizon, and to either side
deciding_seeds: int = 0  # of these; 0: no more than `seeds`
deciding_reach: float = 1.0  # octaves to either side
eval_batches: int = 64
workers: int = 2  # processes, one core each; 0 trains in this one
lanes: int = 1
lanes_at_once: int = 1
chunk_steps: int = 250
time_limit_minutes: float = 0.0
assumed_tflops: float = 0.12

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("lr_transfer")
design = study.settings("lr_transfer", globals())
results = study.run_or_load("lr_transfer", design)
Markdown(this.words.answer(results, design.schemes, design.digits))

# %% [markdown]
# ## What was run
#
# Every curve is a line search over $\eta$: a grid in octaves, half octaves around its lowest point, then
# further seeds near the optimum. A run's loss is that of held-out text at its end. Equal seeds mean equal
# initial draws (up to the scheme's scales) and equal batches, so differences between schemes are taken
# pair by pair. At the base width μP *is* SP, draw for draw.

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for scheme, text in this.words.drift_texts(results, design.schemes, design.digits).items():
    report.glue(f"drift_{scheme}", text)

# %% [markdown]
# ## The optimum over width

# %% tags=["hide-input", "picture", "claim:mup-wider-is-better", "claim:umup-wider-is-better"] mystnb={"figure": {"name": "fig-lr-transfer", "caption": "Held-out loss against learning rate. SP's optimum (stars) moves by {glue:text}`drift_sp` octaves per doubling of width, μP's by {glue:text}`drift_mup`, u-μP's by {glue:text}`drift_umup` (95 % intervals in brackets)."}, "image": {"alt": "Loss against log2 learning rate, one panel per scheme, one line per width"}}
this.figures.by_lr(results)

# %% tags=["hide-input", "claim:sp-drifts", "claim:mup-transfers", "claim:umup-transfers"] mystnb={"figure": {"name": "fig-drift", "caption": "Fitted optimum against width, relative to the narrowest model, with 95 % intervals. SP leaves the band of half an octave, inside which a sweep in factors of two cannot tell a shift from none."}, "image": {"alt": "Shift of the optimal learning rate against width"}}
this.figures.drift(results)

# %% tags=["hide-input"]
Markdown(this.words.optima_table(results, design.digits))

# %% [markdown]
# ## Whose loss is lower?
#
# Defaults are compared at each scheme's own best learning rate, at more than one horizon: a scheme that
# learns fast early need not win later, and the ranking of two parametrizations at one budget is not general. The
# first table shows another caveat: transfer over width is not transfer over the horizon.

# %% tags=["hide-input", "claim:umup-default-vs-mup", "claim:umup-default-vs-sp", "claim:umup-default-vs-mup-short", "claim:umup-default-vs-sp-short", "claim:umup-default-vs-mup-long", "claim:umup-default-vs-sp-long"] mystnb={"figure": {"name": "fig-default-losses", "caption": "How far the best loss lies above u-μP's, all other hyperparameters at their defaults (above zero, u-μP is better): against width, and against the horizon. Bars are 95 % intervals, paired by seed; below the dotted line a claim fails."}, "image": {"alt": "Best loss above that of u-μP, against width and against horizon"}}
this.figures.default_losses(results)

# %% tags=["hide-input"]
Markdown(this.words.default_table(results, design.digits))

# %% [markdown]
# The same losses in bits per byte, which other tokenizers can be compared in:

# %% tags=["hide-input"]
Markdown(this.words.validation_table(results, design.digits))

# %% [markdown]
# ## What a wrong learning rate costs
#
# An optimum may move and cost nothing. *Of the narrow*: the best $\eta$ of the narrowest model used on the widest.
# *Of the short*: that of the shortest horizon used at the longest. *Basin*: how far $\eta$ may stray before the loss
# is 0.05 nats above its lowest, the mean over widths.

# %% tags=["hide-input"]
Markdown(this.words.price_table(results, design.schemes, design.digits))

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("lr_transfer", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% [markdown]
# :::{admonition} Do this
# :class: takeaway
# - Under μP tune $\eta$ on the narrow model [mup-transfers](claims.yaml) and use it on the wide one, at no more
#   than 0.01 nats [mup-price-of-narrow](claims.yaml).
# - Do so under u-μP: it costs no more [umup-price-of-narrow](claims.yaml), though whether the best $\eta$ stays
#   within half an octave is open [umup-transfers](claims.yaml).
# - Under SP tune again, or extrapolate. [sp-drifts](claims.yaml)
# - Do not choose u-μP for its loss: whether it reaches that of μP's defaults at the largest width is open
#   [umup-default-vs-mup](claims.yaml), and its lead does not grow with width [umup-advantage-grows](claims.yaml).
#
# **Because** transfer of the *optimum* and height of the *loss* are two questions. Over 16× the steps μP's best
# $\eta$ moves [mup-still-over-steps](claims.yaml), at a price of at most 0.02 nats
# [mup-price-of-short](claims.yaml). μP's defaults are SP at the base width, and how much of u-μP's lead is the
# embedding's learning rate is a study of its own. These are short runs of small models on one corpus, with one
# depth, batch size and schedule.
# :::
