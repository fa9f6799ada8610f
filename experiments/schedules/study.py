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
# # Which schedule, and must its length be known?
#
# **Question.** Cosine fixes the number of steps at the start. Warm-up-stable-decay (WSD) {cite}`hu2024minicpm` trains
# on a plateau and decays when one chooses to stop, so that one plateau serves many budgets. What does that cost at
# equal tokens, what does it save, how long must the decay be, and does the best $\eta$ move with the schedule or with
# the budget?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, about ten minutes: width 32, budgets of 250 to 4000 steps, the same 50 of warm-up.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" makes what they lack
fresh: bool = False  # make everything anew and keep no records
digits: int = 2  # decimals that are printed
corpus: str = "sotu"
tokenizer: str = "bytes"
width: int = 32
n_layers: int = 2
d_head: int = 16
ff_ratio: float = 2.75  # d_ff / d_model
seq_len: int = 64
batch_size: int = 8
warmup_steps: int = 50  # of every run, whatever its budget
final_lr_ratio: float = 0.1  # where every schedule ends
weight_decay: float = 2.0**-13
base_width: int = 16  # where μP equals SP
dtype: str = "float32"
unroll: int = 0
eval_batches: int = 64
schedules: list = ["cosine", "linear", "two_step", "wsd", "wsd_sqrt"]
budgets: list = [250, 500, 1000, 2000, 4000]  # steps
main: int = 1000  # the budget at which all schedules are compared
compare: list = ["mup"]  # further schemes, at the main budget
share: float = 0.2  # of a WSD run's steps that decays
shares: list = [0.05, 0.1, 0.3]  # further decay shares, at the budgets
share_budgets: list = [1000, 4000]
lr_umup: list = [-2, 2]  # log2 of the ends of the grid of η; [-2, 1] did not bracket cosine at 250 and 500 steps
lr_mup: list = [-7.5, -4]  # -5 left cosine open under μP
spacing: float = 0.5  # octaves between its points
seeds: int = 3
fork_budgets: list = [1000]  # at which forked and unforked runs are compared
workers: int = 2  # processes, one core each; 0 works in this one
lanes: int = 3  # divides the runs of every arm, so that one program serves them
lanes_at_once: int = 1
chunk_steps: int = 250
time_limit_minutes: float = 0.0
assumed_tflops: float = 0.03
point_seconds: float = 30.0

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("schedules")
design = study.settings("schedules", globals())
results = study.run_or_load("schedules", design)
Markdown(this.words.answer(results, design.main, design.digits))

# %% [markdown]
# ## What was run
#
# Cosine, linear decay {cite}`bergsma2025straight` and DeepSeek's two steps {cite}`deepseek2024llm` are trained from
# scratch. All WSD runs are forked {cite}`hagele2024fixed`: for each $\eta$
# and seed one plateau is trained, and every decay starts from a copy of its state. A claim checks that this equals,
# bit for bit, a run that was never forked. All schedules have the same number of warm-up steps and end at a tenth of
# $\eta$. Losses are held-out losses at the end: the training loss over the last tenth of the steps would favour
# schedules that have finished their decay by then. A *gap* is between two schedules, each at its own best $\eta$,
# paired by seed.

# %% tags=["hide-input", "claim:fork-is-unforked"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for name, text in this.words.texts(results, design.main, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## At equal tokens

# %% tags=["hide-input", "claim:eta-still-over-schedules", "claim:eta-still-over-schedules-mup"] mystnb={"figure": {"name": "fig-schedules-lr", "caption": "Held-out loss against $\\eta$ at one budget. Above cosine, each at its own best: WSD {glue:text}`gap_wsd`, with $1-\\sqrt x$ {glue:text}`gap_wsd_sqrt`, two-step {glue:text}`gap_two_step`, linear {glue:text}`gap_linear` nats (u-μP). WSD's best $\\eta$ lies {glue:text}`eta_gap` octaves from cosine's under u-μP, {glue:text}`eta_gap_mup` under μP."}, "image": {"alt": "Held-out loss against log2 of the learning rate, one line per schedule and one panel per scheme"}}
this.figures.by_lr(results, design.main)

# %% tags=["hide-input", "claim:wsd-close-to-cosine", "claim:wsd-close-to-cosine-mup", "claim:two-step-close-to-cosine", "claim:linear-close-to-cosine", "claim:root-beats-linear-decay"]
Markdown(this.words.schedules_table(results, design.main, design.digits))

# %% [markdown]
# ## One plateau, many budgets
#
# A plateau has one $\eta$ for all budgets that fork from it, which is its price if the best $\eta$ moves with the
# budget. We use the $\eta$ with the lowest mean loss over all budgets.

# %% tags=["hide-input", "picture", "claim:ladder-close-to-cosine", "claim:ladder-one-rate", "claim:ladder-saves", "claim:wsd-close-to-cosine-long", "claim:root-beats-linear-decay-long"] mystnb={"figure": {"name": "fig-schedules-ladder", "caption": "Left: a plateau, its decays, and cosine from scratch for each budget. Right: the held-out loss above cosine's. With one $\\eta$ for all budgets the ladder ends at most {glue:text}`ladder_wsd` nats above cosine (with $1-\\sqrt x$: {glue:text}`ladder_wsd_sqrt`) and {glue:text}`ladder_own` above WSD at each budget's own best $\\eta$. It saves {glue:text}`saved` % of the steps."}, "image": {"alt": "Training loss of one plateau with forked decays beside cosine runs, and the gaps between them by budget"}}
this.figures.ladder(results)

# %% tags=["hide-input"]
Markdown(this.words.ladder_table(results, design.digits))

# %% [markdown]
# ## How long must the decay be?

# %% tags=["hide-input", "claim:decay-of-20-is-enough", "claim:decay-of-10-is-enough", "claim:decay-of-10-is-enough-long", "claim:decay-of-5-is-short"] mystnb={"figure": {"name": "fig-schedules-share", "caption": "Held-out loss over the share of the steps that decays, less that at 30 %. At the main budget 5 % costs {glue:text}`share_5`, 10 % {glue:text}`share_10` and 20 % {glue:text}`share_20` nats."}, "image": {"alt": "Loss difference against decay share, one line per budget"}}
this.figures.shares(results)

# %% [markdown]
# ## Does the best learning rate move with the budget?

# %% tags=["hide-input", "claim:eta-still-over-budgets-cosine", "claim:eta-still-over-budgets-wsd", "claim:short-rate-serves-cosine", "claim:short-rate-serves-wsd"] mystnb={"figure": {"name": "fig-schedules-horizon", "caption": "The best $\\eta$ of u-μP moves by {glue:text}`slope_cosine` octaves per doubling of the budget under cosine and by {glue:text}`slope_wsd` under WSD. The shortest budget's $\\eta$ costs {glue:text}`short_cosine` nats at the longest under cosine, {glue:text}`short_wsd` under WSD."}, "image": {"alt": "Optimal learning rate against the budget for cosine and warm-up-stable-decay"}}
this.figures.horizons(results)

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`. A pilot of WSD at one seed chose the grids of $\eta$,
# widened where the first results were not bracketed, but not the bounds.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("schedules", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% [markdown]
# :::{admonition} Do this
# :class: takeaway
# - Train with WSD where the length is not known: at equal tokens it is as good as cosine, or better
#   [wsd-close-to-cosine](claims.yaml) [wsd-close-to-cosine-mup](claims.yaml), and a fork of a plateau is exact
#   [fork-is-unforked](claims.yaml).
# - Decay over 20 % of the steps [decay-of-20-is-enough](claims.yaml); 5 % are too few
#   [decay-of-5-is-short](claims.yaml), and 10 % are open [decay-of-10-is-enough](claims.yaml).
# - Choose $\eta$ with the schedule, and tune at the longest budget that you can afford: under cosine the best
#   $\eta$ moves with the budget [eta-still-over-budgets-cosine](claims.yaml), under WSD that is open
#   [eta-still-over-budgets-wsd](claims.yaml), as is what a short budget's costs
#   [short-rate-serves-wsd](claims.yaml).
#
# **Because** one plateau for many budgets saves a third of the steps or more [ladder-saves](claims.yaml); its price
# is one $\eta$ for all, and how small that is, is open [ladder-one-rate](claims.yaml). Compare schedules each at
# its own best $\eta$ and by the held-out loss at the very end. These are short runs of small models on one text.
# :::
