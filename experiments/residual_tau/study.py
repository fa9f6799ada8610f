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
# # The residual scheme: what τ does over depth
#
# **Question.** u-μP {cite}`blake2024umup` runs depth-μP {cite}`yang2023tensor6` with a skip stream of unit scale:
# $\hat R_l = a_l f_l + b_l \hat R_{l-1}$ with $a_l^2 = \tau_l/(\tau_l+1)$, $b_l^2 = 1/(\tau_l+1)$. There are three
# formulas for $\tau_l$: the one that the lemma gives (*derived*), that of the authors' library (*library*) and the
# one that the paper prints as equation (22) (*printed*). Which of them are equivalent to a plain network, what do
# embedding, attention and FFN contribute at the output, does the stream keep its scale, and does the learning rate
# transfer over depth?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, about ten minutes: depths 2 to 32 at width 32, walks to depth 64 at width 128.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" makes what they lack
fresh: bool = False  # make everything anew and keep no records
digits: int = 2  # decimals that are printed
corpus: str = "sotu"
tokenizer: str = "bytes"
alphas: list = [0.25, 0.5, 1.0, 2.0, 4.0]  # α_residual
ratios: list = [0.25, 0.5, 1.0, 2.0, 4.0]  # α_residual_attn_ratio
lemma_depths: list = [1, 2, 4, 8, 16, 32, 64]
lemma_seeds: int = 3
walk_depths: list = [2, 4, 8, 16, 32, 64]
walk_arms: list = ["derived", "library", "printed", "mup", "completep", "sp"]  # walked, not trained: those of `arms`, and sp
walk_width: int = 128
walk_seeds: int = 5
grid_depth: int = 8  # depth of the walks over alphas and ratios
trained_depths: list = [2, 16]
trained_seeds: int = 2
trained_lr: float = 0.5  # log2 η
arms: list = ["derived", "library", "printed", "mup", "completep"]  # of derived, library, printed (u-μP's τ), mup, completep
depths: list = [2, 4, 8, 16, 32]
d_model: int = 32
d_head: int = 16
ff_ratio: float = 2.75  # d_ff / d_model
seq_len: int = 64
batch_size: int = 8
steps: int = 400
warmup_ratio: float = 0.25
weight_decay: float = 2.0**-13
base_width: int = 32  # with n_layers, where μP and CompleteP equal SP
n_layers: int = 2
dtype: str = "float32"
unroll: int = 1
lr_umup: list = [-1, 2]  # log2 of the coarse grid's ends
lr_mup: list = [-7, -4]
refine: float = 1.0  # octaves between points near the optimum
window: float = 1.0  # octaves around the best in which all seeds run
seeds: int = 3
eval_batches: int = 16
workers: int = 2  # processes, one core each; 0 works in this one
lanes: int = 1
lanes_at_once: int = 1
chunk_steps: int = 200
time_limit_minutes: float = 0.0
assumed_tflops: float = 0.03
point_seconds: float = 4.0

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("residual_tau")
design = study.settings("residual_tau", globals())
results = study.run_or_load("residual_tau", design)
Markdown(this.words.answer(results, design.digits))

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for name, text in this.words.texts(results, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## Lemma C.1
#
# Random branches of random kind and gain that see only their input's direction, in float64. The derived $\tau$
# is $r_l^2/\sum_{i<l} r_i^2$ with $r_l = \hat\alpha/\sqrt L$: the lemma holds to rounding. The library has $L/2$ in
# place of $L$, which is the same network with $\sqrt 2$ times the branch multipliers: our $\alpha_r = 1$ is its
# `residual_mult` of $1/\sqrt 2$. In the printed equation the $\hat\alpha$ are not squared and the factor
# $1/\sqrt L$ stands before the fraction only, not on the earlier branches in its denominator.

# %% tags=["hide-input", "claim:lemma-derived", "claim:lemma-library", "claim:printed-is-off", "claim:printed-is-no-depth-mup"] mystnb={"figure": {"name": "fig-tau-lemma", "caption": "Left: largest difference between the unit-scaled network and the depth-μP network that it equals (printed: the nearest found, over both hyperparameters). Right: what each branch contributes to the output's variance. The output with the printed equation lies {glue:text}`printed_distance` RMS from the nearest depth-μP network's."}, "image": {"alt": "Error of the lemma over depth, and contribution of each branch, for the three conventions"}}
this.figures.lemma(results)

# %% [markdown]
# ## What makes up the output?
#
# At $\alpha_r = \alpha_\rho = 1$ the derived $\tau$ gives the embedding half of the output's variance and attention and
# FFN a quarter each, at any depth. Lines are the recursion for branches of unit scale, markers the real model
# at initialization on independent random tokens.

# %% tags=["hide-input", "picture"] mystnb={"figure": {"name": "fig-tau-contributions", "caption": "Contribution of embedding, attention and FFN to the output over depth. At N = {glue:text}`depth` the embedding's exact share is {glue:text}`emb_derived` % (derived), {glue:text}`emb_library` % (library), {glue:text}`emb_printed` % (printed). In the real model attention contributes more than its share, as the next figures explain."}, "image": {"alt": "Shares of the output's variance over depth, one panel per convention"}}
this.figures.contributions(results)

# %% tags=["hide-input", "claim:alpha-residual-realised", "claim:alpha-ratio-realised", "claim:alpha-ratio-realised-long", "claim:library-is-root-two"] mystnb={"figure": {"name": "fig-tau-realised", "caption": "The ratios at the output against the hyperparameters meant to set them. With one token per sequence every branch has unit scale, and the real model (filled) lies on the exact lines; with full sequences (hollow) attention contributes more."}, "image": {"alt": "Realised ratios against alpha_residual and its attention ratio"}}
this.figures.realised(results)

# %% tags=["hide-input"]
Markdown(this.words.realised_table(results, design.digits))

# %% [markdown]
# ## The scale along the skip stream
#
# Unit scaling keeps $\sigma = 1$ on the stream *if every branch has unit scale*. Attention's scale model assumes
# that the values it averages are independent. From the second block on they are not: earlier attention has
# written nearly the same vector at many positions, which averaging does not shrink, and the branch's output is
# above unit scale. FFN branches do have unit scale.

# %% tags=["hide-input", "claim:stream-is-unit-scaled", "claim:stream-is-unit-scaled-control", "claim:sp-stream-grows", "claim:mup-stream-does-not-grow"] mystnb={"figure": {"name": "fig-tau-stream", "caption": "σ along the skip stream at initialization. SP's grows with depth; μP's and CompleteP's depth rules bound it. u-μP's furthest value is {glue:text}`stream`; with one token per sequence it is {glue:text}`stream_control`. In the deepest u-μP model {glue:text}`common` % of the last attention branch is common to all positions of a sequence."}, "image": {"alt": "Scale along the skip stream for SP, μP, CompleteP and u-μP"}}
this.figures.stream(results)

# %% [markdown]
# ## After training

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tau-trained", "caption": "The same contributions on held-out text, before and after training. Parts are correlated after training, so that shares need not sum to one."}, "image": {"alt": "Contributions before and after training, one panel per convention"}}
this.figures.trained(results)

# %% [markdown]
# ## Does the learning rate transfer over depth?

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tau-losses", "caption": "Held-out loss against learning rate over depth. Stars are fitted optima with 95 % intervals."}, "image": {"alt": "Loss against log2 learning rate, one panel per scheme, one line per depth"}}
this.figures.loss_by_lr(results)

# %% tags=["hide-input", "claim:umup-transfers-over-depth", "claim:mup-transfers-over-depth", "claim:completep-transfers-over-depth", "claim:completep-is-better", "claim:library-trains-alike", "claim:printed-trains-alike", "claim:deeper-is-better"] mystnb={"figure": {"name": "fig-tau-depth", "caption": "Left: the optimum relative to the shallowest model's. Over the measured depths it moves by, in octaves: u-μP derived {glue:text}`shift_derived`, library {glue:text}`shift_library`, printed {glue:text}`shift_printed`; μP {glue:text}`shift_mup`; CompleteP {glue:text}`shift_completep`. Middle: the loss there. Right: differences of it at every depth and, on what their claims allow (grey), in the mean."}, "image": {"alt": "Shift of the optimal learning rate, best loss and its differences over depth"}}
this.figures.over_depth(results)

# %% tags=["hide-input"]
Markdown(this.words.optima_table(results, design.digits))

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the recorded runs, in `claims.yaml`; those on the lemma, the printed equation and the
# stream's scale after trial runs had been seen.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("residual_tau", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% [markdown]
# :::{admonition} Do this
# :class: takeaway
# - Use the derived $\tau$ [lemma-derived](claims.yaml), and do not implement equation (22) as printed
#   [printed-is-off](claims.yaml); whether training shows the difference is open
#   [printed-trains-alike](claims.yaml).
# - When porting from the authors' library, multiply its `residual_mult` by $\sqrt 2$ to get our $\alpha_r$.
#   [library-is-root-two](claims.yaml)
# - Do not carry $\eta$ over depth: under u-μP [umup-transfers-over-depth](claims.yaml) and under μP
#   [mup-transfers-over-depth](claims.yaml) it moves, and CompleteP's is open
#   [completep-transfers-over-depth](claims.yaml); [another study](transfer_axes.ipynb) says what keeping it costs.
#
# **Because** both ratios are exact for branches of unit scale [alpha-residual-realised](claims.yaml)
# [alpha-ratio-realised](claims.yaml), which attention over more than one token leaves after the first block
# [stream-is-unit-scaled](claims.yaml). These are short runs of narrow models; whether a learning rate transfers
# over depth depends on the horizon too.
# :::
