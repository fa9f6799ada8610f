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
# # Should attention divide by d or by √d?
#
# **Question.** SP divides $q\cdot k$ by $\sqrt d$, μP {cite}`yang2022tensor5` and u-μP
# {cite}`blake2024umup` by $d$, the head size. The first is right when
# $q$ and $k$ are independent (central limit theorem, CLT), the second when training has aligned them (law
# of large numbers, LLN). How does $q\cdot k$ grow with $d$ at initialization and along training, at a fixed
# width or with a fixed number of heads? Under which division do the best $\alpha_\text{attn}$ and the best
# $\eta$ not move?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, about a quarter of an hour: width 128, or two heads, of 8 to 128; 500 steps.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" makes what they lack
fresh: bool = False  # make everything anew and keep no records
digits: int = 2  # decimals that are printed
corpus: str = "sotu"
tokenizer: str = "bytes"
width: int = 128  # d_model; the number of heads is width / d_head
n_layers: int = 2
ff_ratio: float = 2.75  # d_ff / d_model
seq_len: int = 64
batch_size: int = 8
steps: int = 500
warmup_ratio: float = 0.25
weight_decay: float = 2.0**-13
dtype: str = "float32"
unroll: int = 0
eval_batches: int = 16
base_width: int = 32  # where μP equals SP
d_head: int = 32  # with base_width, where μP's logits equal SP's
schemes: list = ["umup", "umup_sqrt_attention", "mup"]  # probed
d_heads: list = [8, 16, 32, 64, 128]  # of the probed runs and of the searches over α_attn
eta_d_heads: list = [8, 32, 128]  # of the searches over η
heads: int = 2  # of further probed runs, whose d_model is heads · d_head
heads_d_heads: list = [8, 16, 32, 64, 128]  # of these runs; empty: none
probe_steps: list = [0, 20, 40, 60, 100, 140, 200, 300, 400, 500]
log2_lr_umup: float = 0.0  # default η
log2_lr_mup: float = -6.5
eta: list = [-1, 2]  # log2 of the coarse grid's ends
alpha: list = [-1, 5]  # the same for α in α·q·k/d
refine: float = 0.5  # octaves between points near the optimum of η
window: float = 1.0  # octaves around the best in which all seeds run
alpha_refine: float = 1.0  # the same two for α_attn
alpha_window: float = 2.0
seeds: int = 3
extend: int = 2  # octaves by which a grid may grow
layer_d_heads: list = [16, 32, 64, 128, 256, 512]  # of the layer at initialization
layer_width: int = 512
layer_seq_len: int = 32
layer_batch: int = 4
layer_seeds: int = 4
correlations: list = [0.0, 0.1, 0.3, 1.0]
workers: int = 2  # processes, one core each; 0 works in this one
lanes: int = 1
lanes_at_once: int = 1
chunk_steps: int = 20  # divides every probe step, so that one program serves all chunks
time_limit_minutes: float = 0.0
assumed_tflops: float = 0.12
point_seconds: float = 0.2

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("attention_scale")
design = study.settings("attention_scale", globals())
results = study.run_or_load("attention_scale", design)
Markdown(this.words.answer(results, design.digits))

# %% [markdown]
# ## What was run
#
# Width is fixed, so larger heads are fewer heads; one set of runs has two heads at every size instead.
# *Probed* runs are observed during training at the default $\eta$ and $\alpha_\text{attn} = 1$. *Line
# searches* over $\alpha_\text{attn}$ and over $\eta$, all at the fixed width, have a grid in octaves, half
# octaves around its lowest point, then further seeds there. The two divisions are one
# family, $\alpha/\sqrt d = (\alpha\sqrt d)/d$, and so is u-μP's model of the output's scale: one curve of loss
# over $\alpha_\text{attn}$ is read in both units, and a claim checks that the runs agree.

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for name, text in this.words.numbers(results, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## Two laws in one layer
#
# Let $q_i$ and $k_i$ have unit variance and the correlation $\rho$. Then $q\cdot k$ has the mean $\rho d$ and the
# variance $(1+\rho^2)d$: its RMS goes from $\sqrt d$ to $\rho d$ at $d = 1/\rho^2$. A small correlation is
# enough if heads are large. Here are an attention layer's own $q$ and $k$ at initialization, with key weights
# $\rho W_q + \sqrt{1-\rho^2}\,W_k$.

# %% tags=["hide-input", "claim:layer-independent", "claim:layer-aligned", "claim:base-logits"] mystnb={"figure": {"name": "fig-attention-layer", "caption": "RMS of $q\\cdot k$ of a token with itself, in the layer at initialization; lines are the theory, ticks the turn at $d = 1/\\rho^2$. Exponents: {glue:text}`independent` for independent, {glue:text}`aligned` for equal $q$ and $k$."}, "image": {"alt": "RMS of q·k against head size for several correlations of q and k"}}
this.figures.layer(results)

# %% [markdown]
# ## The exponent during training

# %% tags=["hide-input", "picture", "claim:init-exponent", "claim:init-exponent-mup", "claim:trained-exponent", "claim:trained-exponent-root", "claim:trained-exponent-mup"] mystnb={"figure": {"name": "fig-attention-exponent", "caption": "The exponent of $q\\cdot k$'s RMS in the head size (left, 95 % intervals over seeds) goes from {glue:text}`start_umup` through {glue:text}`peak` at step {glue:text}`peak_step` to {glue:text}`end_umup` under u-μP with $1/d$, and to {glue:text}`end_umup_sqrt_attention` with $1/\\sqrt d$. Right: the RMS itself, without any multiplier."}, "image": {"alt": "Exponent of q·k over training steps, and q·k against head size at several steps"}}
this.figures.exponents(results)

# %% [markdown]
# One exponent describes these curves badly: between neighbouring head sizes it is {glue:text}`local` at the end (u-μP,
# $1/d$), and the interval of the one exponent says so. Head size and number of heads change together here:
# *Head size, or number of heads?* takes them apart.
#
# The RMS of $q\cdot k$ is $d$ times the sizes of $q_i$ and $k_i$ times the RMS cosine. Independent vectors have
# a cosine of $1/\sqrt d$, aligned ones one that does not depend on $d$. The mean product $E[q_i k_i]$, on which
# the argument for $1/d$ is usually built, is something else: pairs may align with either sign. Where
# the exponents of $q\cdot k$ and of the cosine differ by less than 1, larger heads have smaller $q_i$ and $k_i$.

# %% tags=["hide-input", "claim:cosine-flat", "claim:mean-product"] mystnb={"figure": {"name": "fig-attention-cosine", "caption": "The cosine of $q$ and $k$. At the largest head its RMS ends at {glue:text}`cosine`, the magnitude of its mean at {glue:text}`mean_cosine`."}, "image": {"alt": "Cosine of q and k against head size and over training"}}
this.figures.correlations(results)

# %% tags=["hide-input"]
Markdown(this.words.growth_table(results, design.digits))

# %% tags=["hide-input"]
Markdown(this.words.end_table(results, design.digits))

# %% [markdown]
# ## Head size, or number of heads?
#
# Width is $d$ times the number of heads, so there is no exponent in $d$ by itself: at fixed width, larger heads are
# fewer, down to a single one; with two heads at every size, the width is $2d$. Both sets of runs share one.
# What the number of heads does and what the width does cannot be told apart.

# %% tags=["hide-input", "claim:trained-exponent-heads", "claim:trained-exponent-heads-root", "claim:trained-exponent-heads-mup", "claim:heads-no-matter"] mystnb={"figure": {"name": "fig-attention-readings", "caption": "The exponent of $q\\cdot k$'s RMS between neighbouring head sizes, at the end of training. From $d = 16$ up it is {glue:text}`width_umup` at fixed width and {glue:text}`heads_umup` with a fixed number of heads (u-μP, $1/d$); the second less the first, as means of local slopes, {glue:text}`heads_difference`."}, "image": {"alt": "Local exponent of q·k against head size, at fixed width and at a fixed number of heads, one panel per scheme"}}
this.figures.readings(results)

# %% tags=["hide-input"]
Markdown(this.words.readings_table(results, design.digits))

# %% [markdown]
# **Which one to take.** The limit for which $1/d$ was derived has a fixed number of heads, and heads that grow with the
# width {cite}`yang2022tensor5`: whether its argument holds, and how to scale a model whose heads grow, is read from the
# fixed number of heads. Whoever chooses $d$ for a model of given width, as the searches below do, reads the fixed width.
# A model that grows by adding heads of one size needs neither.

# %% [markdown]
# ## Entropy of the attention

# %% tags=["hide-input", "claim:entropy-still-per-d"] mystnb={"figure": {"name": "fig-attention-entropy", "caption": "Entropy of the attention's rows. At the end it changes by {glue:text}`entropy_d` nats per doubling of the head size under $1/d$ and by {glue:text}`entropy_root` under $1/\\sqrt d$ (u-μP)."}, "image": {"alt": "Entropy of attention over training by head size, one panel per division"}}
this.figures.entropy(results)

# %% [markdown]
# ## Which division keeps its optimum?

# %% tags=["hide-input", "claim:same-family", "claim:per-d-loss"] mystnb={"figure": {"name": "fig-attention-alpha", "caption": "Held-out loss against $\\alpha_\\text{attn}$: the same runs in the unit of either division; the dotted line is the default. Stars are fitted optima. At the default and the largest head, $1/d$ minus $1/\\sqrt d$ is {glue:text}`difference`."}, "image": {"alt": "Loss against log2 of alpha_attn by head size, one panel per division"}}
this.figures.curves(results, "alpha")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-attention-eta", "caption": "Held-out loss against $\\eta$ at $\\alpha_\\text{attn} = 1$. Over the measured head sizes the optimum moves by {glue:text}`shift_eta_d` octaves under $1/d$ and by {glue:text}`shift_eta_root` under $1/\\sqrt d$."}, "image": {"alt": "Loss against log2 of the learning rate by head size, one panel per division"}}
this.figures.curves(results, "eta")

# %% tags=["hide-input", "claim:alpha-still-per-d", "claim:alpha-moves-per-root", "claim:eta-still-per-d", "claim:eta-still-per-root"] mystnb={"figure": {"name": "fig-attention-drift", "caption": "Fitted optima against head size, relative to the smallest head. The best $\\alpha_\\text{attn}$ moves by {glue:text}`shift_alpha_d` octaves under $1/d$ and by {glue:text}`shift_alpha_root` under $1/\\sqrt d$. Band: half an octave; dotted: the shift under $1/\\sqrt d$ if there is none under $1/d$."}, "image": {"alt": "Shift of the optimal alpha_attn and learning rate against head size"}}
this.figures.drift(results)

# %% tags=["hide-input"]
Markdown(this.words.optima_table(results, design.digits))

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`. A pilot at half the width chose the grids, not the bounds.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("attention_scale", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% [markdown]
# :::{admonition} Do this
# :class: takeaway
# - Divide $q\cdot k$ by $d$ where heads grow: at the largest head that reaches the loss of $\sqrt d$, or a lower
#   one. [per-d-loss](claims.yaml)
# - Carry $\eta$ over the head size under $1/d$ [eta-still-per-d](claims.yaml); whether $\alpha_\text{attn}$ stays
#   is open [alpha-still-per-d](claims.yaml), so search it again, or keep the head size and add heads, for which the
#   two divisions are the same.
#
# **Because** the division by $\sqrt d$ describes initialization [init-exponent](claims.yaml) and the division by
# $d$ an aligned limit [layer-aligned](claims.yaml); which of the two a trained model is closer to is open
# [trained-exponent](claims.yaml). These are short runs of small models, and optima were searched at one width,
# where larger heads are fewer.
# :::
