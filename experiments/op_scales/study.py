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
# # Are the ops at unit scale?
#
# **Question.** u-μP divides every op by a model of its scale, so that unit inputs give unit outputs and unit
# gradients. Some of these models are exact; others are fits that the paper calls empirical and states without an
# error (Table 4 and Appendix B of {cite}`blake2024umup`, after {cite}`blake2023unitscaling`). Where do they err, and by
# how much?

# %% tags=["parameters", "hide-input"]
# Parameters, as papermill sets them; smoke.yaml and h100.yaml hold what differs there.
# Two CPU cores, some minutes: every grid, five seeds, float32.
profile: str = "cpu"  # cpu, or one of the files: smoke, h100
mode: str = "load"  # "load" only reads the records, "run" measures what they lack
fresh: bool = False  # measure everything anew and keep no records
digits: int = 2  # decimals that are printed
seq_lens: list = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
d_heads: list = [16, 32, 64, 128]
alphas: list = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]  # attention
correlations: list = [0.003, 0.01, 0.03, 0.1, 0.3]  # between the values of two positions
ffn_alphas: list = [0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]  # gated SiLU
softmax_sizes: list = [2, 8, 64, 512, 4096, 32000]
softmax_mults: list = [0.25, 0.5, 1.0, 2.0, 4.0]
vocab_sizes: list = [2, 16, 256, 4096, 32000]
loss_alphas: list = [0.25, 1.0, 4.0]
logits_rms: list = [0.0625, 1.0]
loss_tokens: list = [4, 64, 1024, 16384]
widths: list = [128, 256, 1024]
readout_vocab_sizes: list = [256, 4096, 32000]
residual_layers: int = 4
tokens: int = 512
coordinates: int = 4096  # least number of heads times head size
elements: int = 1048576  # values of a tensor otherwise
seeds: int = 5
dtypes: list = ["float32"]
workers: int = 2  # processes, one core each; 0 measures in this one
time_limit_minutes: float = 0.0
point_seconds: float = 0.5  # assumed, for the estimate

# %% tags=["hide-input", "answer"]
from IPython.display import Markdown

from umup.lab import claims, report, study

this = study.code("op_scales")
design = study.settings("op_scales", globals())
results = study.run_or_load("op_scales", design)
Markdown(this.words.answer(results, design.digits))

# %% [markdown]
# ## What was measured
#
# Inputs, weights and cotangents are independent draws of mean 0 and variance 1. Each op runs with the numbers that
# `umup.rules` gives u-μP, forward and backward, and the RMS of every output and gradient is recorded. Since the
# model's scale is already divided out, **every number below is measured over model: 1 is right**, 1.1 is 10 % too
# large. Error bars are 95 % intervals over seeds, grey bands the bounds that the claims stated beforehand. For
# comparison: one step of E4M3's mantissa is 12.5 %, and a difference below the format's resolution costs nothing.

# %% tags=["hide-input"]
Markdown(this.words.what_ran(results))

# %% tags=["remove-cell"]
for name, text in this.words.texts(results, design.digits).items():
    report.glue(name, text)

# %% [markdown]
# ## Attention
#
# The model interpolates, in the logarithm, between one-hot weights (the output is a value, of scale 1) and flat ones,
# for which it uses $\sqrt{\ln T/T}$. Both this limit and its surroundings can be derived. The logits are close to
# normal with variance $s^2 = \alpha^2/d_{\text{head}}$, row $t$ weighs $t$ values by $e^{z_i}/\sum_j e^{z_j}$, and a
# ratio of expectations gives
#
# $$\sigma^2 = \frac1T\sum_{t=1}^{T}\frac{\mathbb E\sum_i e^{2z_i}}{\mathbb E\,(\sum_i e^{z_i})^2}
# = \frac1T\sum_{t=1}^{T}\frac{\kappa}{\kappa+t-1},\qquad \kappa = e^{\alpha^2/d_{\text{head}}}.$$
#
# At $\kappa = 1$ this is $H_T/T = (\ln T + 0.577 + \dots)/T$: Euler's constant is what the paper's limit leaves out,
# and it is most of the error on short sequences. At $T = 1$ it is 1, with no special case.

# %% tags=["hide-input", "picture", "claim:attention-output", "claim:attention-output-short", "claim:attention-derived"] mystnb={"figure": {"name": "fig-attention-output", "caption": "Attention's output over its model. For T ≥ 64 and α from ¼ to 4 it lies at {glue:text}`out`; over the whole grid at {glue:text}`out_all`. The derived scale (dashed, at the largest head) explains it: measured over derived is {glue:text}`derived` wherever α² ≤ d_head/4."}, "image": {"alt": "RMS of attention's output over the model against sequence length, one panel an alpha, one line per head size"}}
this.figures.attention_output(results)

# %% [markdown]
# The two also disagree in the power of $T$. With weight $a$ on the one-hot end the paper's model falls like
# $T^{-(1-a)/2}$, whereas the true scale falls like $T^{-1/2}$ once $T \gg \kappa$, so that beyond α ≈ 1 the model's
# error depends on the sequence length: σ is too small on short sequences and too large on long ones.

# %% tags=["hide-input", "claim:attention-output-wide"] mystnb={"figure": {"name": "fig-attention-error", "caption": "The model's error over head size and α, in per cent. Left of the turn it is Euler's constant; where α²/d_head leaves 0 the sign changes, the sooner the longer the sequence."}, "image": {"alt": "Heat maps of the relative error of the attention model over head size and alpha"}}
this.figures.attention_error(results)

# %% [markdown]
# Unit scale holds on average over positions, not at each one: the output at the first position is a single value,
# which is then divided by the σ of the whole sequence.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-attention-rows", "caption": "RMS of the output by position. At the longest T the first position comes out at {glue:text}`first_row`, the last at {glue:text}`last_row`."}, "image": {"alt": "RMS of attention's output against position, one line per sequence length"}}
this.figures.attention_rows(results)

# %% [markdown]
# ### The gradients of q, k and v
#
# The gradient of v is the transpose of the output and has its scale. Those of q and k do not: they carry the
# logits' multiplier $\alpha/d_{\text{head}}$, for which the sum over $d_{\text{head}}$ terms in $g\cdot v$
# compensates by $\sqrt{d_{\text{head}}}$ only. With flat weights
#
# $$\operatorname{RMS}(dq) = \operatorname{RMS}(dk) = \frac{\alpha}{\sqrt{d_{\text{head}}}}
# \sqrt{\frac{H_T - \sum_{t\le T} 1/t^2}{\ln T}}.$$

# %% tags=["hide-input", "claim:attention-dq-unit", "claim:attention-dq-law", "claim:attention-dq-exponent", "claim:attention-dv"] mystnb={"figure": {"name": "fig-attention-gradients", "caption": "Left: RMS of dq times √d_head at α = 1, {glue:text}`beta` at the longest T; dashed, the formula above. Right: RMS of dq itself, {glue:text}`dq` over the whole grid, against 0.9·α/√d_head (dotted)."}, "image": {"alt": "RMS of the gradient of q against sequence length and against head size"}}
this.figures.attention_gradients(results)

# %% [markdown]
# Table 4's $\beta_q = \beta_k$ is thus a convention (one factor for the whole op, so that the branch's gradient
# stays a true gradient), not a scale. In the paper's model this does no harm, since q and k are
# outputs of linears whose weight gradients Adam normalises; in FP8 it costs $\frac12\log_2 d_{\text{head}}$ bits of
# range, three for a head of 64.
#
# ### Where independence ends
#
# Everything above assumes that values at different positions are independent. Those of real text are not: tokens
# repeat, and training aligns them. Weights sum to 1, so a component shared by all values passes through attention
# undiminished and is then divided by σ like the rest.

# %% tags=["hide-input", "claim:attention-correlated", "claim:attention-inputs"] mystnb={"figure": {"name": "fig-attention-correlated", "caption": "Attention's output when any two positions' values are correlated by ρ. At ρ = {glue:text}`rho` it is {glue:text}`shared` at T = {glue:text}`shared_t`, as the dashed curve derives. The distribution itself does not matter: normal, uniform and Laplace inputs agree (see the verdicts)."}, "image": {"alt": "RMS of attention's output against the correlation of values"}}
this.figures.attention_correlated(results)

# %% [markdown]
# ## Gated SiLU and softmax
#
# Gated SiLU has one parameter, and its exact scale is an integral over the normal density. The fit uses the
# forward scale for the gradients too; the gradient of x has exactly that scale, that of the gate need not.

# %% tags=["hide-input", "claim:gated-silu-output", "claim:gated-silu-gate"] mystnb={"figure": {"name": "fig-gated-silu", "caption": "Gated SiLU over its model: output at {glue:text}`silu`, gradient of the gate at {glue:text}`silu_gate`. Black: the exact integrals."}, "image": {"alt": "RMS of gated SiLU's output and gradients over the model against alpha"}}
this.figures.gated_silu(results)

# %% [markdown]
# The paper fuses softmax into attention and the loss. The authors' library has it alone as well, with a model of
# the same form between the flat limit (RMS $1/n$) and the one-hot limit (RMS $1/\sqrt n$); its gradient takes the
# output's factor by default. Here the wrong power of $n$ shows clearly, since the logits' variance is $\alpha^2$
# whatever the size.

# %% tags=["hide-input", "claim:softmax-output"] mystnb={"figure": {"name": "fig-softmax", "caption": "Softmax over the library's model: output at {glue:text}`softmax`, gradient at {glue:text}`softmax_dx`, proportional to α where weights are flat. Dashed, for α ≤ 1: √(nκ/(κ+n−1)) with κ = exp(α²)."}, "image": {"alt": "RMS of softmax's output and gradient over the model against the number of classes"}}
this.figures.softmax(results)

# %% [markdown]
# ## The loss and the readout
#
# The gradient of the logits is softmax − one-hot times $V/\sqrt{V-1}$: exact for equal logits, free of α and of the
# number of tokens. What enters the trunk has passed the readout as well, and there the paper's note to Table 1 asks
# for a backward scale of $1/\sqrt{\text{fan-in}}$. The product $g W^\top$ sums over fan-out, so that scale leaves
# $\sqrt{V/d_{\text{model}}}$.

# %% tags=["hide-input", "claim:loss-gradient-init", "claim:loss-gradient-unit", "claim:loss-gradient-tokens"] mystnb={"figure": {"name": "fig-loss-gradient", "caption": "RMS of the logits' gradient: exact at initialization (left), above 1 where α times unit logits makes the softmax sharp (middle), and the same for one token as for thousands (right)."}, "image": {"alt": "RMS of the logits' gradient against vocabulary and number of tokens"}}
this.figures.loss_gradient(results)

# %% tags=["hide-input", "claim:readout-fan-in", "claim:readout-fan-out"] mystnb={"figure": {"name": "fig-readout", "caption": "RMS of the gradient that enters the trunk. At V = {glue:text}`readout_v` and d_model = {glue:text}`readout_d`: {glue:text}`readout_out` with 1/√fan_out, {glue:text}`readout_in` with the printed 1/√fan_in."}, "image": {"alt": "RMS of the readout's input gradient against V over d_model for two backward scales"}}
this.figures.readout(results)

# %% [markdown]
# ## Every op
#
# The smallest and the largest RMS of every tensor over its grid. Linears that are not square deviate from unit scale
# in dx by √(fan_out/fan_in), on purpose: a residual branch must return its true gradient, and over the FFN the
# factors cancel.

# %% tags=["hide-input", "claim:linear-unit", "claim:residual-unit"]
Markdown(this.words.worst_table(results, design.digits))

# %% [markdown]
# ## Verdicts
#
# Bounds were written before the runs, in `claims.yaml`. "Within x %" is the largest distance from 1 over the grid;
# its interval runs from the largest lower to the largest upper end of the cells.

# %% tags=["hide-input", "verdicts"]
verdicts = claims.evaluate("op_scales", results, design.profile)
Markdown(claims.format_table(verdicts, design.digits))

# %% [markdown]
# :::{admonition} Do this
# :class: takeaway
# - Trust the scale models at initialization, for α near 1 on sequences of 64 tokens and more
#   [attention-output](claims.yaml) [gated-silu-output](claims.yaml); on shorter ones
#   [attention-output-short](claims.yaml) take the mean of $\kappa/(\kappa+t-1)$ for σ, where α² is at most a
#   quarter of the head size [attention-derived](claims.yaml).
# - Scale the readout's backward pass by $1/\sqrt{\text{fan-out}}$ [readout-fan-out](claims.yaml), not by
#   $1/\sqrt{\text{fan-in}}$ [readout-fan-in](claims.yaml).
# - Expect q and k gradients near $\alpha/\sqrt{d_{\text{head}}}$ and leave them that much range
#   [attention-dq-law](claims.yaml). Do not expect unit scale from the library's stand-alone softmax
#   [softmax-output](claims.yaml).
#
# **Because** unit scale is a statement about independent inputs, not a law of training: attention's output is the
# first to lose it when values become alike [attention-correlated](claims.yaml).
# :::
