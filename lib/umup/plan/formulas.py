"""The planner's arithmetic: bytes, operations, traffic and seconds of one training step.

Inputs and outputs are plain numbers: a `Case` describes a run on a machine, and every function
takes one. Counts are per device unless a name says otherwise; sizes are bytes, times are seconds.
The interactive page has the same formulas in JavaScript (``book/planner/formulas.js``, under the
same names); a test compares the two, so change both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run on a machine, as the formulas see it; `umup.plan.case` makes one.

    Attributes:
        d_model, n_layers, d_head, d_ff, vocab_size, seq_len: the decoder's shape.
        remat, attention: as in `umup.config.ModelConfig`.
        batch_size: sequences per step.
        accumulate: parts of a batch, processed one after another.
        act_bytes, param_bytes: of an element of the activations and of the weights.
        in_bytes, wide_bytes: of an element of the cast inputs of q|k|v and gate|up, and of those of
            the attention-out and FFN-down projections.
        weight_bytes: of an element of the cast weights.
        fp8_share: share of the linears' operations that is in float8.
        data, fsdp, tensor: devices along each axis of the mesh.
        memory, usable: bytes of a device, and the share of them that a program may take.
        bandwidth, link_bandwidth, network_bandwidth: bytes per second of a device's memory, of
            transfers from devices of its node, and of transfers from other nodes.
        node_devices: devices in a node.
        peak_flops, peak_fp8_flops: operations per second of a device's products.
        gemm_efficiency, attention_efficiency: shares of the peak that products reach.
        overhead: seconds that a block costs beside its arithmetic.
        usd_per_hour: price of one device.
        copied_moments: optimizer moments that the compiler cannot update in place.
        work_bytes: least bytes of an element of temporaries.
        unfused_sums: 1 where sums over ``tensor`` of matrices side by side are not merged.
    """

    d_model: int
    n_layers: int
    d_head: int
    d_ff: int
    vocab_size: int
    seq_len: int
    remat: str
    attention: str
    batch_size: int
    accumulate: int = 1
    act_bytes: int
    param_bytes: int
    in_bytes: int
    wide_bytes: int
    weight_bytes: int
    fp8_share: float
    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    memory: float
    usable: float
    bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    node_devices: int
    peak_flops: float
    peak_fp8_flops: float
    gemm_efficiency: float
    attention_efficiency: float
    overhead: float
    usd_per_hour: float
    copied_moments: int
    work_bytes: int
    unfused_sums: int

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return self.data * self.fsdp * self.tensor

    @property
    def local_tokens(self) -> float:
        """Tokens that one device processes at once: its rows of one part of the batch."""
        return self.batch_size / self.accumulate * self.seq_len / (self.data * self.fsdp)


@dataclass(frozen=True)
class Parameters:
    """Trained parameters of the whole model, by class."""

    embedding: int
    attention: int
    mlp: int
    readout: int
    total: int
    non_embedding: int


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one step of the whole model, matrix products only.

    Attributes:
        blocks, readout, attention: of the program, by part.
        attended: attention's, without recomputation.
        recomputed: what the backward pass recomputes.
        model: as PaLM counts (arXiv 2204.02311, Appendix B): 6 per weight and token, and
            attention's products over the full square.
        six_nd: 6 per parameter and token.
        compiled: of the program: with the attended share of the square, and recomputation.
    """

    blocks: float
    readout: int
    attention: float
    attended: float
    recomputed: float
    model: int
    six_nd: int
    compiled: float


@dataclass(frozen=True)
class Kept:
    """Activation bytes per device saved for the backward pass, of one block."""

    stream: float
    linears: float
    attention: float
    total: float


@dataclass(frozen=True)
class Memory:
    """Peak bytes per device during a step.

    Attributes:
        state: weights and Adam's two float32 moments.
        gradients: one per weight.
        copies: moments that the compiler cannot update in place (two on XLA's CPU backend, where
            the freed originals then serve as workspace).
        kept: activations that all blocks save for the backward pass.
        workspace: what one block, or the readout and its loss, needs in addition.
        total: the sum.
    """

    state: float
    gradients: float
    copies: float
    kept: float
    workspace: float
    total: float


@dataclass(frozen=True)
class Communication:
    """Bytes that one device receives in the collectives of a step, and their seconds.

    Bytes are payloads: what an all-gather returns or an all-reduce takes.

    Attributes:
        gathered: weights over ``fsdp``.
        scattered: sums of gradients over ``fsdp``.
        lookup: embeddings from a table split by features and their gradients, over ``fsdp``.
        replicas: sums of gradients over ``data``.
        sums: sums of activations over ``tensor``.
        fsdp_s, data_s, tensor_s: seconds over each axis, those of rings: (n−1)/n of the payload for
            a gather or scatter, twice that for a sum.
    """

    gathered: float
    scattered: float
    lookup: float
    replicas: float
    sums: float
    fsdp_s: float
    data_s: float
    tensor_s: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, and its parts.

    Attributes:
        seconds: of the step.
        products, attention, elementwise, overhead: of its consecutive parts.
        hidden: communication that overlaps with them.
        exposed: communication that does not overlap.
        limit: the part that takes longest.
        mfu: the share of the step that its products would take at the machine's peak: float8
            products at the float8 peak, attention without its masked part, and no recomputation.
            At most 1.
        tokens_per_s: of all devices.
    """

    seconds: float
    products: float
    attention: float
    elementwise: float
    overhead: float
    hidden: float
    exposed: float
    limit: str
    mfu: float
    tokens_per_s: float


def parameters(c: Case) -> Parameters:
    """Trained parameters of the whole model, by class."""
    attention = 4 * c.n_layers * c.d_model**2
    mlp = 3 * c.n_layers * c.d_model * c.d_ff
    table = c.vocab_size * c.d_model
    rest = table + attention + mlp
    return Parameters(table, attention, mlp, table, total=table + rest, non_embedding=rest)


def attended(c: Case) -> float:
    """Share of the T × T square of logits that is computed."""
    if c.attention == "cudnn":
        return 0.5
    blocks = 4 if c.seq_len >= 256 else 2
    if c.attention == "blocked" and c.seq_len % blocks == 0:
        return (blocks + 1) / (2 * blocks)
    return 1.0


def flops(c: Case) -> Flops:
    """Operations of the matrix products of one step of the whole model."""
    p = parameters(c)
    tokens = c.batch_size * c.seq_len
    blocks = 6 * tokens * (p.attention + p.mlp)
    readout = 6 * tokens * p.readout
    square = 12 * tokens * c.n_layers * c.seq_len * c.d_model
    attention = square * attended(c)
    # All forward products once more, except the down-projection, whose output is not needed.
    down = 2 * tokens * c.n_layers * c.d_model * c.d_ff
    blocks_again = blocks / 3 - down if c.remat == "full" else 0.0
    attention_again = 0.0 if c.remat == "none" else attention / 3
    return Flops(
        blocks=blocks + blocks_again,
        readout=readout,
        attention=attention + attention_again,
        attended=attention,
        recomputed=blocks_again + attention_again,
        model=blocks + readout + square,
        six_nd=6 * tokens * p.total,
        compiled=blocks + readout + attention + blocks_again + attention_again,
    )


def kept(c: Case) -> Kept:
    """Activation bytes per device saved for the backward pass, of one block."""
    tokens = c.local_tokens
    whole = tokens * c.d_model
    split = whole / c.tensor
    ff = tokens * c.d_ff / c.tensor
    heads = c.d_model / c.d_head / c.tensor
    act = c.act_bytes
    stream, linears, attention = whole * act, 0.0, 0.0
    if c.remat == "dots":
        # Results of products without a batch dimension: q|k|v, attention-out, gate|up.
        linears = (3 * split + whole + 2 * ff) * act
    if c.remat == "none":
        stream = 2 * stream
        linears = (2 * whole) * c.in_bytes + (split + ff) * c.wide_bytes + 2 * ff * act
        attention = 3 * split * act
        if c.attention == "cudnn":
            attention = attention + split * act + 4 * tokens * heads
        else:
            attention = attention + 4 * tokens * heads * c.seq_len * attended(c)
    return Kept(stream, linears, attention, total=stream + linears + attention)


def memory(c: Case) -> Memory:
    """Peak bytes per device during a step."""
    ways = c.fsdp * c.tensor
    held = parameters(c).total / ways
    state = (c.param_bytes + 8) * held
    gradients = c.param_bytes * held
    copies = 4 * c.copied_moments * held
    saved = kept(c).total * c.n_layers
    workspace = max(_block_workspace(c), _readout_workspace(c))
    # The sum over parts of a batch: a second set, unless the originals of moments leave room.
    if c.accumulate > 1 and c.copied_moments < 2:
        workspace += gradients
    freed = 2 * c.copied_moments * 4 * c.n_layers * c.d_model * c.d_ff / ways
    workspace = max(workspace - freed, 0.0)
    total = state + gradients + copies + saved + workspace
    return Memory(state, gradients, copies, saved, workspace, total)


def _block_workspace(c: Case) -> float:
    """Temporary bytes of one block: the larger of its forward and its backward pass."""
    p = parameters(c)
    tokens = c.local_tokens
    ff = tokens * c.d_ff / c.tensor
    work = max(c.act_bytes, c.work_bytes)
    widened = 1 if work > c.act_bytes else 0
    square = 4 * tokens * c.d_model / c.d_head / c.tensor * c.seq_len
    scores = 0.0 if c.attention == "cudnn" else square
    mask = 1.25 * scores
    forward = mask + widened * ff * work
    attention = 2 * scores if c.remat == "none" else 2 * scores + mask
    mlp = (4 + 2 * widened) * ff * work
    backward = max(attention, mlp) + min(attention, mlp) / 2
    stream = 4 * tokens * c.d_model * work
    # One block's weights, as slices of the stacks; gathered ones beside the sum of their gradients
    # (a backend without reduce-scatter sums the whole before it takes its part).
    weights = work * (p.attention + p.mlp) / c.n_layers / c.tensor
    if c.fsdp > 1:
        weights = 1.5 * weights
    return max(forward, backward) + stream + weights


def _readout_workspace(c: Case) -> float:
    """Temporary bytes of the readout: its weight, and logits in float32 and as activations."""
    work = max(c.act_bytes, c.work_bytes)
    logits = c.local_tokens * c.vocab_size / c.tensor * (4 + c.act_bytes)
    return logits + work * c.vocab_size * c.d_model / c.tensor


def reach(c: Case, extent: int) -> float:
    """Bytes per second and device between devices that are ``extent`` apart in the mesh."""
    return c.link_bandwidth if extent <= c.node_devices else c.network_bandwidth


def communication(c: Case) -> Communication:
    """Bytes that one device receives in the collectives of a step, by mesh axis, and their seconds.

    ``fsdp`` gathers each linear's cast weights once forward and once backward (and once more if the
    block is recomputed, except for the last linear of the second branch), and sums gradients.
    ``data`` sums gradients; ``tensor`` sums the outputs of branches and of the lookup, and the
    cotangents of a branch's first linear. The embedding's values have the type of its weights,
    all others that of the activations.
    """
    gathered = scattered = lookup = replicas = sums = 0.0
    parts, act = c.accumulate, c.act_bytes
    stream = parts * c.local_tokens * c.d_model
    table = c.vocab_size * c.d_model / c.tensor
    outs = c.n_layers * c.d_model**2 / c.tensor
    downs = c.n_layers * c.d_model * c.d_ff / c.tensor
    firsts = 3 * outs + 2 * downs
    blocks = firsts + outs + downs
    again = 1 if c.remat == "full" else 0
    if c.fsdp > 1:
        times = 2 + again
        # The weights of the two linears that recipes treat separately are cast as wide as their
        # inputs.
        gathered = parts * c.weight_bytes * (times * firsts + 2 * table)
        gathered = gathered + parts * c.wide_bytes * (times * outs + 2 * downs)
        scattered = parts * act * (blocks + table)
        lookup = stream * (c.param_bytes + act)
    if c.data > 1:
        replicas = parts * (act * (blocks + table) + c.param_bytes * table) / c.fsdp
    if c.tensor > 1:
        back = 5 if c.unfused_sums else 2
        inside = act * (c.n_layers * (2 + back + again) + 1)
        sums = stream * (inside + c.param_bytes)

    def seconds(payload: float, ways: int, extent: int) -> float:
        return (ways - 1) / ways * payload / reach(c, extent)

    return Communication(
        gathered,
        scattered,
        lookup,
        replicas,
        sums,
        fsdp_s=seconds(gathered + scattered + lookup, c.fsdp, c.tensor * c.fsdp),
        data_s=2 * seconds(replicas, c.data, c.devices),
        tensor_s=2 * seconds(sums, c.tensor, c.tensor),
    )


def step_time(c: Case) -> StepTime:
    """Seconds of one step and its parts.

    Products run at ``gemm_efficiency`` of the machine's peak and the operations between them at its
    memory bandwidth, one after another, and every block costs ``overhead``. Gathers and sums over
    ``fsdp`` and ``data`` overlap with all of these as far as they fit; sums over ``tensor`` do not.
    """
    f = flops(c)
    n = c.devices
    per_flop = (1 - c.fp8_share) / c.peak_flops + c.fp8_share / c.peak_fp8_flops
    products = (f.blocks + f.readout) / n * per_flop / c.gemm_efficiency
    attention = f.attention / n / c.peak_flops / c.attention_efficiency
    linears = f.compiled - f.recomputed - f.attended
    ideal = (linears * per_flop + f.attended / c.peak_flops) / n
    elementwise = _moved(c) / c.bandwidth
    overhead = c.overhead * c.n_layers * c.accumulate
    busy = products + attention + elementwise + overhead
    sent = communication(c)
    hidden = sent.fsdp_s + sent.data_s
    seconds = max(busy, hidden) + sent.tensor_s
    parts = {
        "products": products,
        "memory bandwidth": elementwise,
        "attention": attention,
        "overhead": overhead,
    }
    exceeded = max(hidden, sent.tensor_s) > busy
    return StepTime(
        seconds,
        products,
        attention,
        elementwise,
        overhead,
        hidden,
        exposed=seconds - busy,
        limit="communication" if exceeded else max(parts, key=lambda name: parts[name]),
        mfu=ideal / seconds,
        tokens_per_s=c.batch_size * c.seq_len / seconds,
    )


def _moved(c: Case) -> float:
    """Bytes that the operations between the products of a step read and write."""
    tokens = c.local_tokens
    heads = c.d_model / c.d_head / c.tensor
    # What the block would save: written and read forward, read and written backward, with the
    # cotangents; once more if it is recomputed.
    rows = tokens * (8 * c.d_model + 3 * c.d_ff / c.tensor) * c.act_bytes
    passes = 6 if c.remat == "none" else 8
    square = 0.0
    if c.attention != "cudnn":
        # Logits, exponentials and weights in float32, and the three cotangents.
        times = 14 if c.remat == "none" else 18
        square = 4 * tokens * heads * c.seq_len * attended(c) * times
    logits = 4 * tokens * c.vocab_size / c.tensor * 6
    held = parameters(c).total / c.fsdp / c.tensor
    update = held * (2 * (c.param_bytes + 8) + 12)
    return c.accumulate * (c.n_layers * (passes * rows + square) + logits) + update
