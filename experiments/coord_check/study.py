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
# # Which rule of width does what?
#
# **Question.** As a model widens, every activation should keep its size at initialization and change by the same
# amount in training: the coordinate check. Which of SP's weights break this, which of μP's rules repairs which of
# them, and does μP pass for a hundred steps at a learning rate as large as training tolerates?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, about ten minutes: widths 32 to 512 with two heads at all of them.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" measures what they lack
fresh: bool = False  # measure everything anew and keep no records
digits: int = 2  # decimals that are printed
corpus: str = "sotu"
tokenizer: str = "bytes"
schemes: list = ["sp", "ladder_init", "ladder_lr", "ladder_logits", "mup", "umup", "completep", "mup_readout_lr", "umup_readout_lr"]
widths: list = [32, 64, 128, 256, 512]
base_width: int = 32  # where μP and every rung of the ladder equal SP
n_heads: int = 2  # at all widths: the head size grows
n_layers: int = 2
ff_ratio: float = 2.75  # d_ff / d_model
seq_len: int = 64
batch_size: int = 8
look_at: list = [1, 10, 100]  # numbers of updates
log2_eta_plain: list = [-9, -5]  # small and large, SP and μP
log2_eta_unit: list = [-3, 1]  # small and large, u-μP
seeds: int = 3
wide_seeds: int = 2  # at the largest width
tolerance: float = 0.2  # the slope that counts as none
dtype: str = "float32"
workers: int = 2  # processes, one core each; 0 works in this one
time_limit_minutes: float = 0.0
point_seconds: float = 4.0

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("coord_check")
design = study.settings("coord_check", globals())
results = study.run_or_load("coord_check", design)
found = this.results.checks(results, design.tolerance)
slopes = this.results.fitted(found)
Markdown(this.words.answer(found, design.digits))

# %% [markdown]
# ## What is measured
#
# Decoders of several widths are trained with Adam at a constant learning rate, a small one and one that is twice
# the narrowest model's best. Before training and after a few numbers of updates we take, on the same held-out
# text, the root mean square of every activation and of its change since the start; and for every weight $W$ with
# multiplier $A$, the spectral norms of $A\,W$ and of $A\,(W - W_0)$ in units of $\sqrt{\text{fan-out}/\text{fan-in}}$
# {cite}`yang2023spectral`.
# Each is fitted by a power of the width, and each exponent should be 0. Logits and attention logits, whose size does
# not grow with width, may start small: only their change counts.

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
ladder_step = sorted(set(design.look_at))[1]  # later ones are in the figures below
for name, text in this.words.glued(found, ladder_step, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## From SP to μP, one rule at a time
#
# The ladder replaces one row of SP's rules by μP's at each rung: the initialization, the learning rates, the
# readout's and the branches' multipliers, and last the attention's $1/d$. At the base width all rungs are one
# model, draw for draw.

# %% tags=["hide-input", "picture", "claim:sp-logits-grow", "claim:sp-stream-grows", "claim:mup-stream-steady", "claim:umup-stream-steady", "claim:mup-attention-logits-steady", "claim:attention-rung"] mystnb={"figure": {"name": "fig-ladder", "caption": "Exponent of width in the change of three activations, on the way from SP to μP. The logits' goes from {glue:text}`coord_sp_logits` under SP to {glue:text}`coord_mup_logits` under μP at the large learning rate, that of the attention logits from {glue:text}`coord_sp_qk` to {glue:text}`coord_mup_qk` (95 % intervals in brackets; the band is the tolerance)."}, "image": {"alt": "Slope over width of the change of logits, residual stream and attention logits for each rung of the ladder"}}
this.figures.ladder(slopes, design.tolerance, ladder_step)

# %% tags=["hide-input", "claim:mup-logits-steady", "claim:umup-logits-steady"] mystnb={"figure": {"name": "fig-coord-growth", "caption": "Change of the logits at the large learning rate, relative to the narrowest model. One step is not enough: the initial readout is a random matrix whose share in the logits falls with width; many steps show the effect of the rules. Dots are seeds, the dotted line grows like the width."}, "image": {"alt": "Change of the logits against width after several numbers of steps"}}
this.figures.growth(results)

# %% [markdown]
# ## Every activation, every scheme

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-coord-heat", "caption": "Exponent of width in the change of every activation after the last step at the large learning rate. Bold: the whole 95 % interval lies beyond the tolerance."}, "image": {"alt": "Heat table of slopes, schemes by activations"}}
this.figures.heat(slopes, design.tolerance)

# %% [markdown]
# ## Which weight breaks which rule
#
# Activations say *that* something is wrong; weights say *what*. This is the printed verdict of
# `umup.coord_check`, which takes any model, on SP and on μP:

# %% tags=["hide-input"]
print(found["sp"].text(design.digits))

# %% tags=["hide-input"]
print(found["mup"].text(design.digits))

# %% tags=["hide-input"]
Markdown(this.words.broken_table(found, design.digits))

# %% [markdown]
# The updates are the most informative. u-μP's embedding stands out by design: its rule, $1/\sqrt{\text{fan-out}}$ on
# the learning rate, was found by experiment and contradicts the check.

# %% tags=["hide-input", "claim:umup-embedding-slows"] mystnb={"figure": {"name": "fig-coord-weights", "caption": "Exponent of width in the norm of every weight's first update at the large learning rate, relative to √(fan-out/fan-in). That of u-μP's embedding follows width to the power {glue:text}`coord_embed`."}, "image": {"alt": "Heat table of slopes of first updates, schemes by weights"}}
this.figures.heat(slopes, design.tolerance, kind="weight")

# %% [markdown]
# The norms at initialization, exponent of width; the readout's may be below 0:

# %% tags=["hide-input"]
Markdown(this.words.norms_table(found, design.digits))

# %% [markdown]
# ## Does the readout need a further 1/width?
#
# A blog post {cite}`jaxblog` gives the readout's learning rate a factor 1/width in addition to its 1/width multiplier,
# since Adam's step has no such factor. Tensor Programs V {cite}`yang2022tensor5` and u-μP {cite}`blake2024umup` do
# not. The logits change for two reasons, which we separate: the readout's own change, and that of the stream below it.

# %% tags=["hide-input", "claim:mup-readout-in-step", "claim:mup-readout-in-step-later", "claim:blog-readout-lr-needed", "claim:readout-lr-freezes", "claim:readout-lr-freezes-umup", "claim:readout-lr-logits-shrink"] mystnb={"figure": {"name": "fig-coord-readout", "caption": "Left, the readout's own part of the logits' first change follows width to the power {glue:text}`coord_mup_readout` under μP and {glue:text}`coord_blog_readout` with the further factor (95 % intervals in brackets; the dotted line falls like 1/width): the factor is one too many. Right, the whole change after many steps: the other weights compensate for some, not all, of the missing change."}, "image": {"alt": "The readout's part of the change of the logits and the whole change, against width"}}
this.figures.readout(results)

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`. A pilot chose at which step the attention and the readout are
# judged, not the bounds.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("coord_check", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% [markdown]
# :::{admonition} Do this
# :class: takeaway
# - Check your own model with `umup.coord_check`, after many steps and at a learning rate near the largest that
#   trains: there the change of the logits grows with width under SP [sp-logits-grow](claims.yaml) and not under μP
#   [mup-logits-steady](claims.yaml).
# - Leave the readout's learning rate as it is in Table 1 [mup-readout-in-step](claims.yaml): a further 1/width
#   makes its part of the change shrink [readout-lr-freezes](claims.yaml).
# - Read the weights before the activations, and do not take u-μP's embedding for a mistake: its updates shrink by
#   design. [umup-embedding-slows](claims.yaml)
#
# **Because** a slope near zero is necessary for transfer but not sufficient: the check sees neither weight decay
# nor the schedule. Nor does everything pass here under μP: the residual stream [mup-stream-steady](claims.yaml) and
# the attention logits [mup-attention-logits-steady](claims.yaml) do not. The widths are small, so that initial
# randomness still matters; slopes of a tenth are not evidence.
# :::
