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
# # Do the rules hold for models that are not ours?
#
# **Question.** An MLP and a small vision transformer, written in plain Flax NNX without any rule of width, are given
# the roles and numbers of μP {cite}`yang2022tensor5`. Does the best learning rate then not move as they widen,
# biases, norm gains and class token included? Do they pass the coordinate check, and does it catch a parameter with a
# wrong role? The chapter "Your own model" shows their code.

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, about ten minutes: eight times the base width for either model. A one-seed pilot
# placed the grids; under μP the grid is one and the same at every width.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" measures what they lack
fresh: bool = False  # measure everything anew and keep no records
digits: int = 2  # decimals that are printed
models: list = ["mlp", "vit"]
mlp_widths: list = [128, 256, 512, 1024]  # the first is the base width
vit_widths: list = [24, 48, 96, 192]
mlp_sp: list = [-6, -6.5, -7.5, -8]  # log2 η in the middle of the grid, by width
mlp_mup: list = [-6, -6, -6, -6]
vit_sp: list = [-6.5, -7.5, -9, -10]
vit_mup: list = [-6.5, -6.5, -6.5, -6.5]
spacing: float = 0.5  # octaves
near: float = 1.5  # half-width of the grid of all seeds
far: float = 3.0  # half-width of the grid of one seed, at whole octaves
steps: int = 300
mlp_batch: int = 64
vit_batch: int = 32
warmup_ratio: float = 0.1
held_out: int = 2048  # images
seeds: int = 6
wide_seeds: int = 3  # at the largest width
wrong_curves: list = ["mlp.readout.kernel"]  # MODEL.path of what is marked as hidden though it is not
wrong_checks: list = ["mlp.hidden.bias", "mlp.readout.kernel", "vit.norm.scale"]
check_etas: list = [-10, -6]  # log2 η of the coordinate checks
look_at: list = [1, 10]  # numbers of updates
check_seeds: int = 3
tolerance: float = 0.2  # the slope that counts as none
workers: int = 2  # processes, one core each; 0 works in this one
time_limit_minutes: float = 0.0
point_seconds: float = 25.0  # assumed, for the estimate

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("own_model")
design = study.settings("own_model", globals())
results = study.run_or_load("own_model", design)
Markdown(this.words.answer(results, design.digits))

# %% [markdown]
# ## What is measured
#
# The images are letters in the typefaces that matplotlib ships, rotated, stretched, shifted and overlaid with noise:
# a stream of 26 classes that never repeats. Both models have biases everywhere, LayerNorm with gain and bias, and
# Flax's default initialization; the transformer has a class token, learned positions and four heads at every width,
# so that the head size grows. Under SP they are as their owner wrote them, with one learning rate for all parameters.
# Under μP the readout has its multiplier and initialization, the attention its $1/d$, and every parameter the
# learning-rate factor of its role. At the base width the two are the same model.

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for name, text in this.words.numbers(results, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## Transfer of the learning rate

# %% tags=["hide-input", "picture", "claim:mlp-mup-wider-better", "claim:vit-mup-wider-better", "claim:mlp-mup-price", "claim:vit-mup-price", "claim:mlp-sp-price", "claim:vit-sp-price"] mystnb={"figure": {"name": "fig-own-transfer", "caption": "Held-out loss against η by width. At 8× the base width the η tuned at the base (dashed) costs {glue:text}`price_mlp_mup` nats for the MLP and {glue:text}`price_vit_mup` for the vision transformer under μP, {glue:text}`price_mlp_sp` and {glue:text}`price_vit_sp` under SP. Dots are means over seeds, bands their range, stars fitted optima with 95 % intervals."}, "image": {"alt": "Loss against learning rate by width, SP beside μP, for the MLP and the vision transformer"}}
this.figures.transfer(results)

# %% tags=["hide-input", "claim:mlp-mup-steady", "claim:vit-mup-steady", "claim:mlp-sp-falls", "claim:vit-sp-falls", "claim:mlp-sp-moves-more", "claim:vit-sp-moves-more"] mystnb={"figure": {"name": "fig-own-drift", "caption": "Best η against width. Over 8× it moves by {glue:text}`shift_mlp_mup` octaves for the MLP and {glue:text}`shift_vit_mup` for the vision transformer under μP, by {glue:text}`shift_mlp_sp` and {glue:text}`shift_vit_sp` under SP (95 % intervals in brackets; the band is the claims' half octave, the dotted line theory's octave per doubling for hidden weights under SP). With the readout marked as hidden μP loses transfer: {glue:text}`wrong_shift` octaves."}, "image": {"alt": "Best learning rate against width under SP and μP for both models"}}
this.figures.drift(results)

# %% tags=["hide-input"]
Markdown(this.words.widths_table(results, design.digits))

# %% [markdown]
# ## The coordinate check
#
# `umup.coord_check` sees every parameter and every layer's output. SP breaks the rules of the hidden matrices and of
# the readout. A bias or gain that is treated as a hidden weight freezes as the model widens.

# %% tags=["hide-input", "claim:mlp-mup-check", "claim:vit-mup-check", "claim:mlp-sp-check", "claim:vit-sp-check", "claim:bias-as-hidden-caught", "claim:gain-as-hidden-caught", "claim:readout-as-hidden-caught"] mystnb={"figure": {"name": "fig-own-updates", "caption": "Exponent of width in the norm of every parameter's first update; the rules require 0. Marked as hidden (crosses), the MLP's bias follows width to the power {glue:text}`wrong_bias`, the transformer's last norm gain {glue:text}`wrong_gain` and the MLP's readout {glue:text}`wrong_readout`: the check names each of them."}, "image": {"alt": "Slope over width of the first update of every parameter under SP, under μP and with wrong roles"}}
this.figures.updates(results)

# %% tags=["hide-input", "claim:readout-as-hidden-costs"]
Markdown(this.words.checks_table(results, design.digits))

# %% [markdown]
# A readout marked as hidden moves the best η of the MLP by {glue:text}`wrong_shift` octaves over 8× in width, and the
# loss of the widest, each at its best η, by {glue:text}`wrong_cost` nats: the error hardly shows if every width is
# swept again, but does if η is transferred.

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`. A pilot of one or two seeds placed the grids of learning rates,
# gave the MLP its norm and chose the widths, not the bounds. After a first run had left intervals open, the seeds of all
# but the largest width were raised from three to six.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("own_model", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% [markdown]
# :::{admonition} Do this
# :class: takeaway
# - Give a model of your own μP by a multiplier and an initialization at the readout, $1/d$ in the attention, and a
#   role for every parameter; then carry $\eta$ from the narrow to the wide. [mlp-mup-price](claims.yaml)
#   [vit-mup-price](claims.yaml)
# - Mark only matrices between growing widths as `hidden`, and all biases, gains, tokens and positions as `input`.
#   Run the coordinate check before the sweep: it takes seconds and names a parameter that is wrong.
#   [bias-as-hidden-caught](claims.yaml) [gain-as-hidden-caught](claims.yaml)
#   [readout-as-hidden-caught](claims.yaml)
#
# **Because** under μP the MLP's best $\eta$ stays [mlp-mup-steady](claims.yaml); whether the vision transformer's
# does [vit-mup-steady](claims.yaml), and whether the check passes all that is right [mlp-mup-check](claims.yaml)
# [vit-mup-check](claims.yaml), is open.
# :::
