"""The planner's arithmetic: plain numbers in, plain numbers out, nothing imported but ``math``.

Written in the part of Python that `umup.book.javascript` translates (assignments, conditions, loops
over ``range``, arithmetic, dictionaries with fixed keys), so that the interactive page computes
with these very formulas. A *case* is a dictionary of numbers and names, see `umup.plan.case`:

- shape: d_model, n_layers, d_head, d_ff, vocab_size, seq_len;
- step: batch_size (sequences), accumulate, remat, attention, and bytes of an element of the
  activations (act_bytes), the weights (param_bytes), the cast inputs of q|k|v and gate|up
  (in_bytes) and of the attention-out and FFN-down projections (wide_bytes), and of the cast
  weights (weight_bytes);
- layout: data, fsdp, tensor: devices along each axis of the mesh;
- machine: see `umup.plan.hardware`.

Counts are of one device unless a name says otherwise; bytes are bytes, times seconds.
"""

from __future__ import annotations


def assemble(run, precision, machine):
    """The case of a run on a machine.

    ``run`` has the shape, the step and the layout but for bytes, under the names of a case;
    ``precision`` (`umup.plan.precision`) those bytes, the machine's field with the peak of the
    products, and of each linear the share of the blocks in which it is in float8; ``machine`` the
    fields of `umup.plan.hardware.Hardware`.
    """
    d = run["d_model"]
    ff = run["d_ff"]
    float8 = precision["float8"]
    attention = 3 * d * d * float8["qkv"] + d * d * float8["out"]
    mlp = 2 * d * ff * float8["gate_up"] + d * ff * float8["down"]
    readout = run["vocab_size"] * d
    every = run["n_layers"] * (4 * d * d + 3 * d * ff) + readout
    peak = machine[precision["products"]]
    narrow = machine["tflops_float8"] if machine["tflops_float8"] > 0 else peak
    return {
        **run,
        **precision["bytes"],
        "fp8_share": (run["n_layers"] * (attention + mlp) + readout * float8["readout"]) / every,
        "memory": machine["memory_gb"] * 1e9,
        "usable": machine["usable"],
        "bandwidth": machine["memory_gb_s"] * 1e9,
        "link_bandwidth": machine["link_gb_s"] * 1e9,
        "network_bandwidth": machine["network_gb_s"] * 1e9,
        "node_devices": machine["node_devices"],
        "gemm_efficiency": machine["gemm_efficiency"],
        "attention_efficiency": machine["attention_efficiency"],
        "overhead": machine["overhead_us"] * 1e-6,
        "usd_per_hour": machine["usd_per_hour"],
        "copied_moments": machine["copied_moments"],
        "work_bytes": 4 if machine["widens"] else 0,
        "unfused_sums": 1 if machine["split_sums"] else 0,
        "peak_flops": peak * 1e12,
        "peak_fp8_flops": narrow * 1e12,
    }


def devices(c):
    """Devices of the mesh."""
    return c["data"] * c["fsdp"] * c["tensor"]


def parameters(c):
    """Trained parameters by class, of the whole model."""
    attention = 4 * c["n_layers"] * c["d_model"] ** 2
    mlp = 3 * c["n_layers"] * c["d_model"] * c["d_ff"]
    table = c["vocab_size"] * c["d_model"]
    return {
        "embedding": table,
        "attention": attention,
        "mlp": mlp,
        "readout": table,
        "total": 2 * table + attention + mlp,
        "non_embedding": table + attention + mlp,
    }


def attended(c):
    """Share of the T × T square of logits that is computed."""
    if c["attention"] == "blocked":
        blocks = 4 if c["seq_len"] >= 256 else 2
        if c["seq_len"] % blocks == 0:
            return (blocks + 1) / (2 * blocks)
    return 0.5 if c["attention"] == "cudnn" else 1.0


def flops(c):
    """Floating-point operations of one step of the whole model, matrix products only.

    ``model`` counts what PaLM counts (arXiv 2204.02311, Appendix B): 6 a weight and token, and
    attention's products over the full square. ``compiled`` counts what the program does: the
    attended share of the square alone (``attended``), and what the backward pass computes again
    (``recomputed``).
    """
    p = parameters(c)
    tokens = c["batch_size"] * c["seq_len"]
    blocks = 6 * tokens * (p["attention"] + p["mlp"])
    readout = 6 * tokens * p["readout"]
    square = 12 * tokens * c["n_layers"] * c["seq_len"] * c["d_model"]
    attention = square * attended(c)
    again_blocks = 0.0
    again_attention = 0.0
    if c["remat"] == "full":
        # The forward products once more, but the last of the branch, whose output no one needs.
        down = 2 * tokens * c["n_layers"] * c["d_model"] * c["d_ff"]
        again_blocks = blocks / 3 - down
        again_attention = attention / 3
    if c["remat"] == "dots":
        again_attention = attention / 3
    return {
        "blocks": blocks + again_blocks,
        "readout": readout,
        "attention": attention + again_attention,
        "attended": attention,
        "recomputed": again_blocks + again_attention,
        "model": blocks + readout + square,
        "six_nd": 6 * tokens * p["total"],
        "compiled": blocks + readout + attention + again_blocks + again_attention,
    }


def local_tokens(c):
    """Tokens that one device works on at once: its rows of one part of the batch."""
    return c["batch_size"] / c["accumulate"] * c["seq_len"] / (c["data"] * c["fsdp"])


def kept(c):
    """Bytes that one block keeps for the way back, a device."""
    t = local_tokens(c)
    wide = t * c["d_model"]
    split = wide / c["tensor"]
    ff = t * c["d_ff"] / c["tensor"]
    heads = c["d_model"] / c["d_head"] / c["tensor"]
    act = c["act_bytes"]
    stream = wide * act
    if c["remat"] == "full":
        return {"stream": stream, "linears": 0.0, "attention": 0.0, "total": stream}
    if c["remat"] == "dots":
        # What products without a batch dimension return: q|k|v, attention-out, gate|up.
        linears = (3 * split + wide + 2 * ff) * act
        return {"stream": stream, "linears": linears, "attention": 0.0, "total": stream + linears}
    stream = 2 * stream
    linears = (2 * wide) * c["in_bytes"] + (split + ff) * c["wide_bytes"] + 2 * ff * act
    attention = 3 * split * act
    if c["attention"] == "cudnn":
        attention = attention + split * act + 4 * t * heads
    else:
        attention = attention + 4 * t * heads * c["seq_len"] * attended(c)
    return {
        "stream": stream,
        "linears": linears,
        "attention": attention,
        "total": stream + linears + attention,
    }


def memory(c):
    """Bytes a device: what the step holds at its fullest.

    ``state`` is weights and Adam's two float32 moments; ``gradients`` one of each weight;
    ``kept`` what all blocks keep for the way back; ``workspace`` what one block, or the readout
    and its loss, needs beside. ``copies`` are moments that the compiler cannot update in place
    (``copied_moments`` of the machine: two on XLA's CPU backend, whose freed originals then serve
    as workspace).
    """
    p = parameters(c)
    ways = c["fsdp"] * c["tensor"]
    held = p["total"] / ways
    t = local_tokens(c)
    ff = t * c["d_ff"] / c["tensor"]
    square = 4 * t * c["d_model"] / c["d_head"] / c["tensor"] * c["seq_len"]
    scores = 0.0 if c["attention"] == "cudnn" else square
    work = max(c["act_bytes"], c["work_bytes"])
    widened = 1 if work > c["act_bytes"] else 0
    gradients = c["param_bytes"] * held
    copies = 4 * c["copied_moments"] * held
    mask = 1.25 * scores
    # One block's weights, as slices of the stacks; gathered ones beside the sum of their gradients
    # (a backend without reduce-scatter sums the whole before it takes its part).
    weights = work * (p["attention"] + p["mlp"]) / c["n_layers"] / c["tensor"]
    if c["fsdp"] > 1:
        weights = 1.5 * weights
    forward = mask + widened * ff * work
    head = t * c["vocab_size"] / c["tensor"] * (4 + c["act_bytes"])
    head = head + work * c["vocab_size"] * c["d_model"] / c["tensor"]
    attention = 2 * scores
    if c["remat"] != "none":
        attention = attention + mask
    mlp = (4 + 2 * widened) * ff * work
    stream = 4 * t * c["d_model"] * work
    both = max(attention, mlp) + min(attention, mlp) / 2
    block = max(forward, both) + stream + weights
    workspace = max(block, head)
    # The sum over parts of a batch: a second set, unless the originals of moments leave room.
    if c["accumulate"] > 1 and c["copied_moments"] < 2:
        workspace = workspace + gradients
    freed = 2 * c["copied_moments"] * 4 * c["n_layers"] * c["d_model"] * c["d_ff"] / ways
    workspace = max(workspace - freed, 0.0)
    state = (c["param_bytes"] + 8) * held
    total_kept = kept(c)["total"] * c["n_layers"]
    return {
        "state": state,
        "gradients": gradients,
        "copies": copies,
        "kept": total_kept,
        "workspace": workspace,
        "total": state + gradients + copies + total_kept + workspace,
    }


def reach(c, extent):
    """Bytes a second and device between devices that lie ``extent`` apart in the mesh."""
    return c["link_bandwidth"] if extent <= c["node_devices"] else c["network_bandwidth"]


def communication(c):
    """Bytes that one device receives in collectives of a step, by mesh axis, and their seconds.

    Payloads, that is what an all-gather returns or an all-reduce takes. ``fsdp`` gathers each
    linear's weights, cast, once forward and once backward (but for the last of the second branch
    once more where the block is computed again), and sums gradients; ``lookup`` is the embedding's
    way from and to a table split by features. ``data`` sums gradients; ``tensor`` sums what leaves
    a branch and the lookup, and what leaves its first linear backward. What comes of the embedding
    table is as wide as its weights, all else as the activations. Seconds are those of rings:
    (n−1)/n of the payload for a gather or scatter, twice that for a sum.
    """
    p = parameters(c)
    t = local_tokens(c)
    parts = c["accumulate"]
    data = c["data"]
    fsdp = c["fsdp"]
    tensor = c["tensor"]
    layers = c["n_layers"]
    act = c["act_bytes"]
    table = p["readout"] / tensor
    outs = layers * c["d_model"] ** 2 / tensor
    downs = layers * c["d_model"] * c["d_ff"] / tensor
    firsts = 3 * outs + 2 * downs
    blocks = firsts + outs + downs
    # The weights of the two linears that recipes treat apart are cast as wide as their inputs.
    narrow = c["weight_bytes"]
    wide = c["wide_bytes"]
    gathered = 0.0
    scattered = 0.0
    lookup = 0.0
    if fsdp > 1:
        times = 3 if c["remat"] == "full" else 2
        gathered = parts * narrow * (times * firsts + 2 * table)
        gathered = gathered + parts * wide * (times * outs + 2 * downs)
        scattered = parts * act * (blocks + table)
        lookup = parts * t * c["d_model"] * (c["param_bytes"] + act)
    replicas = 0.0
    if data > 1:
        replicas = parts * (act * (blocks + table) + c["param_bytes"] * table) / fsdp
    sums = 0.0
    if tensor > 1:
        back = 5 if c["unfused_sums"] > 0 else 2
        again = 1 if c["remat"] == "full" else 0
        inside = act * (layers * (2 + back + again) + 1)
        sums = parts * t * c["d_model"] * (inside + c["param_bytes"])
    ring = (fsdp - 1) / fsdp
    network = reach(c, tensor * fsdp)
    seconds_fsdp = ring * (gathered + scattered + lookup) / network
    seconds_data = 2 * (data - 1) / data * replicas / reach(c, devices(c))
    seconds_tensor = 2 * (tensor - 1) / tensor * sums / reach(c, tensor)
    return {
        "gathered": gathered,
        "scattered": scattered,
        "lookup": lookup,
        "replicas": replicas,
        "sums": sums,
        "fsdp_s": seconds_fsdp,
        "data_s": seconds_data,
        "tensor_s": seconds_tensor,
    }


def step_time(c):
    """Seconds of one step, its parts, and MFU.

    ``mfu`` is the share of the step that its products would take at the machine's peak: those in
    float8 at that of float8, attention's where it is computed, nothing twice. It is at most 1.

    Products run at ``gemm_efficiency`` of the machine's peak, what is between them at its memory
    bandwidth, one after the other, and every block costs ``overhead``. Gathers and sums over
    ``fsdp`` and ``data`` hide behind all that where they fit; sums over ``tensor`` do not.
    """
    f = flops(c)
    p = parameters(c)
    n = devices(c)
    wide = c["peak_flops"]
    narrow = c["peak_fp8_flops"]
    per_flop = (1 - c["fp8_share"]) / wide + c["fp8_share"] / narrow
    products = (f["blocks"] + f["readout"]) / n * per_flop / c["gemm_efficiency"]
    attention = f["attention"] / n / wide / c["attention_efficiency"]
    linears = f["compiled"] - f["recomputed"] - f["attended"]
    ideal = (linears * per_flop + f["attended"] / wide) / n
    t = local_tokens(c)
    parts = c["accumulate"]
    heads = c["d_model"] / c["d_head"] / c["tensor"]
    # Elementwise traffic: what the block would keep, written and read forward, read and written
    # backward, with the cotangents; again where it is computed again.
    rows = t * (8 * c["d_model"] + 3 * c["d_ff"] / c["tensor"]) * c["act_bytes"]
    passes = 6 if c["remat"] == "none" else 8
    square = 0.0
    if c["attention"] != "cudnn":
        # Logits, exponentials and weights in float32, and the three cotangents.
        square = 4 * t * heads * c["seq_len"] * attended(c) * (14 if c["remat"] == "none" else 18)
    logits = 4 * t * c["vocab_size"] / c["tensor"] * 6
    held = p["total"] / c["fsdp"] / c["tensor"]
    update = held * (2 * (c["param_bytes"] + 8) + 12)
    moved = parts * (c["n_layers"] * (passes * rows + square) + logits) + update
    elementwise = moved / c["bandwidth"]
    comm = communication(c)
    overhead = c["overhead"] * c["n_layers"] * parts
    busy = products + attention + elementwise + overhead
    hidden = comm["fsdp_s"] + comm["data_s"]
    seconds = max(busy, hidden) + comm["tensor_s"]
    limit = "products" if products >= max(attention, elementwise) else "memory bandwidth"
    if attention > max(products, elementwise):
        limit = "attention"
    if overhead > max(products, attention, elementwise):
        limit = "overhead"
    if hidden > busy or comm["tensor_s"] > busy:
        limit = "communication"
    return {
        "seconds": seconds,
        "products": products,
        "attention": attention,
        "elementwise": elementwise,
        "overhead": overhead,
        "hidden": hidden,
        "exposed": seconds - busy,
        "limit": limit,
        "mfu": ideal / seconds,
        "tokens_per_s": c["batch_size"] * c["seq_len"] / seconds,
    }
