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
# # What does each defence against instability give, and what does it cost?
#
# **Question.** Long runs use several defences: z-loss {cite}`chowdhery2022palm`, QK-norm
# {cite}`wortsman2023proxies`, clipping, warm-up, depth-scaled initialization, and a loop that rolls back after a spike. Which of them allows a larger $\eta$, under SP,
# μP and u-μP? What does each cost a run that is stable without it? And does a run that the loop has healed
# reach the loss of a clean one?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, about a quarter of an hour: width 64, 256 steps, seven η an octave apart, three seeds.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" makes what they lack
fresh: bool = False  # make everything anew and keep no records
digits: int = 2  # decimals that are printed
corpus: str = "sotu"
tokenizer: str = "bytes"
schemes: list = ["sp", "mup", "umup"]
defences: list = ["none", "z_loss", "qk_norm", "both", "clip", "no_warmup"]
width: int = 64  # d_model of every run but the deep ones and the drills
n_layers: int = 2
d_head: int = 16
ff_ratio: float = 2.75  # d_ff / d_model
seq_len: int = 64
batch_size: int = 8
steps: int = 256
warmup_ratio: float = 0.25
weight_decay: float = 2.0**-13
dtype: str = "float32"
unroll: int = 0
eval_batches: int = 4
base_width: int = 32  # where μP equals SP
probe_steps: list = [256]
z_loss: float = 1e-4  # weight of the z-loss
clip: float = 1.0  # bound of the global norm
caps: list = [0.0, 0.5, 1.0]  # of u-μP's α_attn, powers of d_head
deep_layers: int = 8  # of the deeper model; 0: none
deep_width: int = 32
lr_sp: float = -8.0  # log2 of the lowest η
lr_mup: float = -7.0
lr_umup: float = 0.0
octaves: int = 6  # of the grid
extend: int = 4  # octaves by which the grid of an arm may grow, below
seeds: int = 3
best_sp: float = -7.0  # log2 of about the best η; of drills and clipped runs
best_mup: float = -6.0
best_umup: float = 1.0
clip_octaves: list = [0, 4]  # above these, clipped runs
time_repeats: int = 40  # of the timed steps
time_chunk: int = 16
drill_schemes: list = ["mup", "umup"]
drill_kinds: list = ["clean", "poison", "jump", "nan"]
drill_steps: int = 400
drill_width: int = 32
drill_seeds: int = 3
drill_length: int = 8  # batches that are disturbed
drill_factor: float = 64.0  # on η, in a jump
workers: int = 2  # processes, one core each; 0 works in this one
lanes: int = 7
lanes_at_once: int = 1
chunk_steps: int = 256
time_limit_minutes: float = 0.0
assumed_tflops: float = 0.1
point_seconds: float = 8.0

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("stability")
design = study.settings("stability", globals())
results = study.run_or_load("stability", design)
Markdown(this.words.answer(results, design.digits))

# %% [markdown]
# ## What was run
#
# Every scheme with one defence at a time, over $\eta$ from below its best to far above it, all seeds at every
# $\eta$. Where fewer than two $\eta$ lie below the best, the grid grows by an octave; this was added after the
# first grids had been seen, as most best $\eta$ were at their lower end. A run counts as stable while its loss is near the lowest of its seed's curve; a run that diverged
# counts as a uniform guess. *Clipped runs* clip by either of two norms. *Drills* cause a spike half way through a
# run of `umup train`'s loop.

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for name, text in this.words.numbers(results, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## Loss over the learning rate
#
# QK-norm has no gain here. Under SP, and under μP at the base head size, it bounds logits by $\sqrt d$; with it, u-μP's
# $\alpha_\text{attn}$ is set to $\sqrt d$, so that its bound is the same.

# %% tags=["hide-input", "picture", "claim:schemes-sensitivity", "claim:no-warmup-umup", "claim:no-warmup-mup", "claim:no-warmup-sp"] mystnb={"figure": {"name": "fig-stability-curves", "caption": "Held-out loss against $\\eta$ with each defence. QK-norm raises the largest stable $\\eta$ by {glue:text}`gain_qk_norm_sp` octaves under SP, {glue:text}`gain_qk_norm_mup` under μP and {glue:text}`gain_qk_norm_umup` under u-μP; leaving out the warm-up changes it by {glue:text}`gain_no_warmup_sp`, {glue:text}`gain_no_warmup_mup` and {glue:text}`gain_no_warmup_umup`."}, "image": {"alt": "Loss against log2 of the learning rate, one panel per scheme and one line per defence"}}
this.figures.curves(results)

# %% tags=["hide-input"]
Markdown(this.words.defences_table(results, design.digits))

# %% [markdown]
# ## Logits
#
# If $\eta$ is too large, attention logits grow until the softmax is one-hot, and output logits drift, as the
# cross-entropy does not depend on their common level. QK-norm bounds the former by construction; the z-loss
# restrains the latter.

# %% tags=["hide-input", "claim:qk-bounds-logits", "claim:logits-grow-umup", "claim:logits-grow-mup", "claim:z-holds-logits"] mystnb={"figure": {"name": "fig-stability-logits", "caption": "Largest attention logit (left) and RMS of the output logits (right) at the end of training. Over four octaves above the best $\\eta$ the attention logits grow by {glue:text}`growth_umup` octaves under u-μP and by {glue:text}`growth_mup` under μP; with QK-norm they reach at most {glue:text}`bound` of the bound. At the upper end the z-loss changes u-μP's output logits by {glue:text}`held_umup` octaves."}, "image": {"alt": "Attention and output logits against learning rate, with and without defences"}}
this.figures.logits(results)

# %% [markdown]
# ## What a defence gives, and what it costs

# %% tags=["hide-input", "claim:qk-widens-umup", "claim:qk-widens-mup", "claim:qk-widens-sp", "claim:z-widens-umup", "claim:qk-price-umup", "claim:qk-price-mup", "claim:z-price-umup", "claim:z-price-mup", "claim:clip-price-umup"] mystnb={"figure": {"name": "fig-stability-gains", "caption": "Left: octaves by which the largest stable $\\eta$ rises. Right: the change of the loss at the best $\\eta$; for u-μP QK-norm {glue:text}`price_qk_norm_umup`, z-loss {glue:text}`price_z_loss_umup`, clipping {glue:text}`price_clip_umup` nats per token."}, "image": {"alt": "Gain in stable learning rate and change of loss, one row per defence"}}
this.figures.gains(results)

# %% tags=["hide-input"]
Markdown(this.words.times_table(results, design.digits))

# %% [markdown]
# Under u-μP the logit is $\alpha_\text{attn}\,q\cdot k/d$: with QK-norm, $\alpha_\text{attn}$ is the largest possible
# logit, and at 1 no position gets more than $e^2$ times the weight of another. A fair comparison with and without
# QK-norm therefore needs one of $\alpha_\text{attn}$ too.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-stability-caps", "caption": "u-μP at several $\\alpha_\\text{attn}$, without and with QK-norm."}, "image": {"alt": "Loss against learning rate at several alpha_attn, without and with QK-norm"}}
this.figures.caps(results)

# %% [markdown]
# ## Depth-scaled initialization

# %% tags=["hide-input", "claim:depth-init-sp", "claim:depth-init-price-sp"] mystnb={"figure": {"name": "fig-stability-depth", "caption": "The deeper model with and without depth-scaled initialization: the largest stable $\\eta$ changes by {glue:text}`depth_sp` octaves under SP and {glue:text}`depth_mup` under μP. u-μP has no such knob: its residual multipliers take that role."}, "image": {"alt": "Loss against learning rate of a deeper model with and without depth-scaled initialization"}}
this.figures.deep(results)

# %% [markdown]
# ## Clipping, and by which norm
#
# Unit scaling gives every tensor's gradient its own scale (the cut-edge rule), so that the global norm of the
# gradients as held differs in meaning between schemes, and between two forms of one scheme. The loop clips by the
# norm of the unscaled gradient, which is that of the effective weights.

# %% tags=["hide-input", "claim:clip-twins-unscaled", "claim:clip-twins-held", "claim:clip-rare-umup", "claim:clip-held-always"] mystnb={"figure": {"name": "fig-stability-clips", "caption": "Left: the difference in loss of two forms of one scheme under a clip (dotted: the bound of the claims). Right: how often a clip is active, at the best $\\eta$ (filled) and far above it (open). By the unscaled norm u-μP's is active in a share of {glue:text}`active_unscaled`, by the norm as held, {glue:text}`norm_ratio` octaves larger, in {glue:text}`active_held`."}, "image": {"alt": "Difference in loss of equivalent schemes and share of clipped steps, by norm"}}
this.figures.clips(results)

# %% [markdown]
# ## Drills
#
# There are three disturbances: batches of random tokens, a jump of $\eta$, and one update that is not a number. A run
# that is left alone simply continues. In a healed run the loop detects the spike in loss or gradient norm, goes back to
# a checkpoint before it and leaves out the batches. The clean run shows what the spike cost.

# %% tags=["hide-input", "claim:drill-poison", "claim:drill-jump", "claim:drill-nan", "claim:drill-jump-matters", "claim:drill-poison-matters", "claim:drill-false-alarms"] mystnb={"figure": {"name": "fig-stability-drills", "caption": "An induced spike, left alone and healed (u-μP, one seed). Held-out loss above the clean run's over all seeds and schemes: η jump {glue:text}`drill_jump_alone` alone and {glue:text}`drill_jump_healed` healed, poisoned batches {glue:text}`drill_poison_alone` and {glue:text}`drill_poison_healed` nats per token."}, "image": {"alt": "Loss during runs with an induced spike, left alone, healed and clean"}}
this.figures.drills(results)

# %% tags=["hide-input"]
Markdown(this.words.drills_table(results, design.digits))

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`, after one trial seed of the plain curves, of QK-norm and
# of each drill had been seen. They stayed when lower $\eta$ were added.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("stability", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% [markdown]
# :::{admonition} Do this
# :class: takeaway
# - Use QK-norm where $\eta$ must be high [qk-widens-umup](claims.yaml) [qk-widens-mup](claims.yaml)
#   [qk-widens-sp](claims.yaml). At the best $\eta$ it costs more than 0.03 nats under μP
#   [qk-price-mup](claims.yaml); what it costs under u-μP is open [qk-price-umup](claims.yaml).
# - Do not count on the z-loss for a larger $\eta$. [z-widens-umup](claims.yaml)
# - Clip by the unscaled norm: by the norm as held, the clip depends on how the weights are parametrized
#   [clip-twins-held](claims.yaml); that it does not by the unscaled one is open [clip-twins-unscaled](claims.yaml).
# - Let the loop skip the batches that caused a spike [drill-poison](claims.yaml) [drill-jump](claims.yaml), and
#   save checkpoints often enough that a roll back costs less than a spike.
#
# **Because** a defence is worth its price if the run would otherwise leave the range of stable $\eta$: read both
# columns of the table. These are short runs of small models; instabilities that build up over long runs do not show
# here.
# :::
