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
# # Is u-μP's advantage more than its embedding's learning rate?
#
# **Question.** With default hyperparameters u-μP {cite}`blake2024umup` beats μP {cite}`yang2022tensor5` on narrow
# models. But it also trains its embedding faster: at width 32 by a factor of 16 over μP with $\hat\eta_\text{emb}
# = 1$. Is any advantage left once $\hat\eta_\text{emb}$ of μP is tuned? How does the best $\hat\eta_\text{emb}$
# move with width under μP's rule, a constant, and under u-μP's, $1/\sqrt{\text{width}}$? And how far does SP come
# with the same idea alone?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml, h100.yaml and bpe.yaml hold what differs there.
# Two CPU cores, about half an hour: widths 32 to 256 at 1000 steps.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100, bpe
mode: str = "load"  # "load" only reads the records, "run" trains what they lack
fresh: bool = False  # train everything anew and keep no records
digits: int = 2  # decimals that are printed
corpus: str = "sotu"
tokenizer: str = "bytes"
widths: list = [32, 64, 128, 256]
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
log2_lr_umup: float = 0.0  # η of the curves over η̂_emb, and the middle of the grids of η: see EmbeddingLR
log2_lr_mup: float = -6.5
emb_umup: list = [-2, 2]  # log2 of the ends of the coarse grid of η̂_emb, which grows where an end is best
emb_mup: list = [1, 5]
emb_refine: float = 1.0  # octaves between its points near the optimum
emb_window: float = 1.0  # octaves around the best in which all seeds run
seeds: int = 3
arms: list = ["umup", "umup_const_emb", "mup", "mup_tuned", "sp_emb_lr"]  # of the curves over η
reach: int = 1  # octaves of η to either side of the middle
refine: float = 0.5  # octaves between points near the best η
window: float = 0.5
pairs: int = 6  # seeds at the best η of every arm and width
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

this = study.code("embedding_lr")
design = study.settings("embedding_lr", globals())
results = study.run_or_load("embedding_lr", design)
Markdown(this.words.answer(results, design.digits))

# %% [markdown]
# ## What was run
#
# *Over $\hat\eta_\text{emb}$*: for u-μP and μP at every width, at one $\eta$, a grid in octaves that grows where its
# end is best, then further seeds near the optimum. A rule for the embedding's learning rate only changes the
# unit of $\hat\eta_\text{emb}$: u-μP with a constant rule at $\hat\eta_\text{emb}$ is u-μP with its own at
# $\hat\eta_\text{emb}\sqrt{\text{width}}$. One curve therefore serves both rules of a scheme, and a claim checks
# that such runs agree.
#
# *Over $\eta$*: a grid in half octaves with one seed, then further seeds at the best, where arms are compared
# seed by seed. *μP, $\hat\eta_\text{emb}$ tuned* carries the best $\hat\eta_\text{emb}$ of width 32 to every
# width; *u-μP, constant rule* carries the embedding's learning rate that u-μP has at width 32. *SP, embedding LR
# kept* is SP whose $\eta$ falls as 1/width for every weight but the embedding. That is SP with one $\eta$, sought
# at each width, and an embedding factor proportional to width, as {cite}`kalra2026embedding` have it; with the
# 1/width in the rule, its best $\eta$ should stay. It differs from μP only in its readout's larger initial scale.
#
# All losses are on held-out text. Searches follow the training loss. Equal seeds mean equal draws and batches.

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for name, text in this.words.numbers(results, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## What the embedding's learning rate is worth

# %% tags=["hide-input", "picture", "claim:umup-vs-tuned-mup", "claim:umup-vs-tuned-mup-narrow", "claim:constant-rule-costs", "claim:sp-emb-gap"] mystnb={"figure": {"name": "fig-embedding-pairs", "caption": "Differences of best losses, paired by seed; the band is what the claims call equal. At width {glue:text}`largest` μP lies {glue:text}`gap_mup` nats per token above u-μP with default hyperparameters and {glue:text}`gap_tuned` with $\\hat\\eta_\\text{emb} = 2^x$, $x =$ {glue:text}`tuned`, tuned at the narrowest width; u-μP's constant rule costs {glue:text}`gap_const`, and SP with its embedding's learning rate kept lies {glue:text}`gap_sp` above μP."}, "image": {"alt": "Paired differences in loss between arms against width"}}
this.figures.differences(results)

# %% tags=["hide-input"]
Markdown(this.words.pairs_table(results, design.digits))

# %% tags=["hide-input", "claim:sp-emb-still"] mystnb={"figure": {"name": "fig-embedding-eta", "caption": "Held-out loss against $\\eta$, one seed per point, stars at fitted optima. SP with its embedding's learning rate kept (right, one line per width) moves by {glue:text}`drift_sp` octaves per doubling of width."}, "image": {"alt": "Loss against log2 of the learning rate by arm, and by width for SP"}}
this.figures.eta_curves(results)

# %% tags=["hide-input"]
Markdown(this.words.eta_table(results, design.digits))

# %% [markdown]
# ## Which rule keeps the best $\hat\eta_\text{emb}$?

# %% tags=["hide-input", "claim:same-rate"] mystnb={"figure": {"name": "fig-embedding-curves", "caption": "Held-out loss against $\\hat\\eta_\\text{emb}$: the same runs in the unit of either rule of a scheme. Stars are fitted optima with their 95 % intervals."}, "image": {"alt": "Loss against log2 of the embedding's learning-rate multiplier, a panel per rule, a line per width"}}
this.figures.emb_curves(results)

# %% tags=["hide-input", "claim:rule-transfers", "claim:constant-rule-drifts", "claim:mup-emb-transfers", "claim:mup-sqrt-emb-transfers"] mystnb={"figure": {"name": "fig-embedding-optima", "caption": "The best $\\hat\\eta_\\text{emb}$ relative to the narrowest width. Over 8× in width it moves by {glue:text}`shift_umup` octaves under u-μP's rule, by {glue:text}`shift_umup_const_emb` under a constant one, by {glue:text}`shift_mup` under μP and by {glue:text}`shift_mup_sqrt_emb` under μP with u-μP's rule."}, "image": {"alt": "Shift of the best embedding learning-rate multiplier against width, by rule"}}
this.figures.emb_optima(results)

# %% tags=["hide-input"]
Markdown(this.words.emb_table(results, design.digits))

# %% [markdown]
# ## With a large vocabulary
#
# Of the 109 bytes in this text a batch of 512 tokens has 38; of 4096 tokens (byte pairs merged, of the same text) it
# has 318, and half of them occur once in 24 batches or less. A row of the embedding has a gradient only where its token
# occurs. Do the answers hold for such rows? Here are u-μP and μP at widths 64 and 128, on two CPU cores.

# %% tags=["hide-input"]
rare = study.recorded("embedding_lr", "bpe")
Markdown(this.words.what_ran(rare))

# %% tags=["remove-cell"]
for name, text in this.words.numbers(rare, design.digits, factor=2).items():
    report.glue(f"bpe_{name}", text)

# %% tags=["hide-input", "claim:bpe-umup-vs-tuned-mup", "claim:bpe-umup-vs-tuned-mup-narrow", "claim:bpe-default-costs"] mystnb={"figure": {"name": "fig-embedding-bpe-pairs", "caption": "With a vocabulary of 4096, differences of best losses as above. At width {glue:text}`bpe_largest` μP lies {glue:text}`bpe_gap_mup` nats per token above u-μP with default hyperparameters and {glue:text}`bpe_gap_tuned` with $\\hat\\eta_\\text{emb} = 2^x$, $x =$ {glue:text}`bpe_tuned`, tuned at width 64."}, "image": {"alt": "Paired differences in loss between arms against width, with a vocabulary of 4096"}}
this.figures.differences(rare)

# %% tags=["hide-input"]
Markdown(this.words.pairs_table(rare, design.digits))

# %% tags=["hide-input", "claim:bpe-rule-transfers", "claim:bpe-constant-rule-drifts", "claim:bpe-mup-emb-transfers", "claim:bpe-mup-sqrt-emb-transfers"] mystnb={"figure": {"name": "fig-embedding-bpe-curves", "caption": "With a vocabulary of 4096, held-out loss against $\\hat\\eta_\\text{emb}$ in the unit of each rule. From width 64 to 128 the best moves by {glue:text}`bpe_shift_umup` octaves under u-μP's rule, by {glue:text}`bpe_shift_umup_const_emb` under a constant one, by {glue:text}`bpe_shift_mup` under μP and by {glue:text}`bpe_shift_mup_sqrt_emb` under μP with u-μP's rule."}, "image": {"alt": "Loss against log2 of the embedding's learning-rate multiplier, a panel per rule, a line per width, with a vocabulary of 4096"}}
this.figures.emb_curves(rare)

# %% tags=["hide-input"]
Markdown(this.words.emb_table(rare, design.digits))

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`. The two shifts of one scheme are one measurement: they
# differ by $\tfrac12\log_2$ of the ratio of widths exactly.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("embedding_lr", results, design.profile, {"bpe": rare})
Markdown(claims.format_table(verdicts, design.digits))

# %% tags=["hide-input", "takeaway"]
Markdown(this.words.takeaways(verdicts))
