// The formulas of umup.plan.formulas and umup.plan.budgets for the page: the same names, in the same
// order, where the reasons and sources stand. tests/book/test_formulas_js.py compares the two. A case
// and its answers are plain objects; null stands for None.
const formulas = (() => {
  "use strict";

  // ---------------------------------------------------------------- umup.plan.case
  // run: shape, batch, remat, attention and mesh; precision: umup.plan.Precision; machine: Hardware
  const assemble = (run, precision, machine) => {
    const {d_model: d, d_ff: ff, n_layers} = run, {products, float8, ...bytes} = precision;
    const attention = 3 * d * d * float8.qkv + d * d * float8.out;
    const mlp = 2 * d * ff * float8.gate_up + d * ff * float8.down;
    const readout = run.vocab_size * d;
    const every = n_layers * (4 * d * d + 3 * d * ff) + readout;
    const tflops = machine[products];
    return {
      ...run, ...bytes,
      fp8_share: (n_layers * (attention + mlp) + readout * float8.readout) / every,
      memory: machine.memory_gb * 1e9,
      usable: machine.usable,
      bandwidth: machine.memory_gb_s * 1e9,
      link_bandwidth: machine.link_gb_s * 1e9,
      network_bandwidth: machine.network_gb_s * 1e9,
      node_devices: machine.node_devices,
      peak_flops: tflops * 1e12,
      peak_fp8_flops: (machine.tflops_float8 || tflops) * 1e12,
      gemm_efficiency: machine.gemm_efficiency,
      attention_efficiency: machine.attention_efficiency,
      overhead: machine.overhead_us * 1e-6,
      usd_per_hour: machine.usd_per_hour,
      copied_moments: machine.copied_moments,
      work_bytes: machine.widens ? 4 : 0,
      unfused_sums: machine.split_sums ? 1 : 0,
    };
  };

  // ---------------------------------------------------------------- umup.plan.formulas
  const devices = c => c.data * c.fsdp * c.tensor;
  const local_tokens = c => c.batch_size / c.accumulate * c.seq_len / (c.data * c.fsdp);

  const parameters = c => {
    const attention = 4 * c.n_layers * c.d_model ** 2;
    const mlp = 3 * c.n_layers * c.d_model * c.d_ff;
    const table = c.vocab_size * c.d_model;
    const rest = table + attention + mlp;
    return {embedding: table, attention, mlp, readout: table, total: table + rest, non_embedding: rest};
  };

  const attended = c => {
    if (c.attention === "cudnn") return 0.5;
    const blocks = c.seq_len >= 256 ? 4 : 2;
    return c.attention === "blocked" && c.seq_len % blocks === 0 ? (blocks + 1) / (2 * blocks) : 1;
  };

  const flops = c => {
    const p = parameters(c), tokens = c.batch_size * c.seq_len;
    const blocks = 6 * tokens * (p.attention + p.mlp);
    const readout = 6 * tokens * p.readout;
    const square = 12 * tokens * c.n_layers * c.seq_len * c.d_model;
    const attention = square * attended(c);
    const down = 2 * tokens * c.n_layers * c.d_model * c.d_ff;
    const blocksAgain = c.remat === "full" ? blocks / 3 - down : 0;
    const attentionAgain = c.remat === "none" ? 0 : attention / 3;
    return {
      blocks: blocks + blocksAgain,
      readout,
      attention: attention + attentionAgain,
      attended: attention,
      recomputed: blocksAgain + attentionAgain,
      model: blocks + readout + square,
      six_nd: 6 * tokens * p.total,
      compiled: blocks + readout + attention + blocksAgain + attentionAgain,
    };
  };

  const kept = c => {
    const tokens = local_tokens(c), act = c.act_bytes;
    const whole = tokens * c.d_model, split = whole / c.tensor, ff = tokens * c.d_ff / c.tensor;
    const heads = c.d_model / c.d_head / c.tensor;
    let stream = whole * act, linears = 0, attention = 0;
    if (c.remat === "dots") linears = (3 * split + whole + 2 * ff) * act;
    if (c.remat === "none") {
      stream = 2 * stream;
      linears = 2 * whole * c.in_bytes + (split + ff) * c.wide_bytes + 2 * ff * act;
      attention = 3 * split * act + (c.attention === "cudnn"
        ? split * act + 4 * tokens * heads
        : 4 * tokens * heads * c.seq_len * attended(c));
    }
    return {stream, linears, attention, total: stream + linears + attention};
  };

  const memory = c => {
    const ways = c.fsdp * c.tensor, held = parameters(c).total / ways;
    const state = (c.param_bytes + 8) * held;
    const gradients = c.param_bytes * held;
    const copies = 4 * c.copied_moments * held;
    const saved = kept(c).total * c.n_layers;
    let workspace = Math.max(blockWorkspace(c), readoutWorkspace(c));
    if (c.accumulate > 1 && c.copied_moments < 2) workspace += gradients;
    const freed = 2 * c.copied_moments * 4 * c.n_layers * c.d_model * c.d_ff / ways;
    workspace = Math.max(workspace - freed, 0);
    const total = state + gradients + copies + saved + workspace;
    return {state, gradients, copies, kept: saved, workspace, total};
  };

  const blockWorkspace = c => {
    const p = parameters(c), tokens = local_tokens(c), ff = tokens * c.d_ff / c.tensor;
    const work = Math.max(c.act_bytes, c.work_bytes), widened = work > c.act_bytes ? 1 : 0;
    const square = 4 * tokens * c.d_model / c.d_head / c.tensor * c.seq_len;
    const scores = c.attention === "cudnn" ? 0 : square, mask = 1.25 * scores;
    const forward = mask + widened * ff * work;
    const attention = 2 * scores + (c.remat === "none" ? 0 : mask);
    const mlp = (4 + 2 * widened) * ff * work;
    const backward = Math.max(attention, mlp) + Math.min(attention, mlp) / 2;
    const stream = 4 * tokens * c.d_model * work;
    const weights = work * (p.attention + p.mlp) / c.n_layers / c.tensor;
    return Math.max(forward, backward) + stream + (c.fsdp > 1 ? 1.5 * weights : weights);
  };

  const readoutWorkspace = c => {
    const logits = local_tokens(c) * c.vocab_size / c.tensor * (4 + c.act_bytes);
    return logits + Math.max(c.act_bytes, c.work_bytes) * c.vocab_size * c.d_model / c.tensor;
  };

  const reach = (c, extent) => extent <= c.node_devices ? c.link_bandwidth : c.network_bandwidth;

  const communication = c => {
    const parts = c.accumulate, act = c.act_bytes, again = c.remat === "full" ? 1 : 0;
    const stream = parts * local_tokens(c) * c.d_model;
    const table = c.vocab_size * c.d_model / c.tensor;
    const outs = c.n_layers * c.d_model ** 2 / c.tensor;
    const downs = c.n_layers * c.d_model * c.d_ff / c.tensor;
    const firsts = 3 * outs + 2 * downs, blocks = firsts + outs + downs;
    let gathered = 0, scattered = 0, lookup = 0, replicas = 0, sums = 0;
    if (c.fsdp > 1) {
      const times = 2 + again;
      gathered = parts * c.weight_bytes * (times * firsts + 2 * table)
        + parts * c.wide_bytes * (times * outs + 2 * downs);
      scattered = parts * act * (blocks + table);
      lookup = stream * (c.param_bytes + act);
    }
    if (c.data > 1) replicas = parts * (act * (blocks + table) + c.param_bytes * table) / c.fsdp;
    if (c.tensor > 1) {
      const back = c.unfused_sums ? 5 : 2;
      sums = stream * (act * (c.n_layers * (2 + back + again) + 1) + c.param_bytes);
    }
    const seconds = (payload, ways, extent) => (ways - 1) / ways * payload / reach(c, extent);
    return {
      gathered, scattered, lookup, replicas, sums,
      fsdp_s: seconds(gathered + scattered + lookup, c.fsdp, c.tensor * c.fsdp),
      data_s: 2 * seconds(replicas, c.data, devices(c)),
      tensor_s: 2 * seconds(sums, c.tensor, c.tensor),
    };
  };

  const step_time = c => {
    const f = flops(c), n = devices(c);
    const perFlop = (1 - c.fp8_share) / c.peak_flops + c.fp8_share / c.peak_fp8_flops;
    const products = (f.blocks + f.readout) / n * perFlop / c.gemm_efficiency;
    const attention = f.attention / n / c.peak_flops / c.attention_efficiency;
    const linears = f.compiled - f.recomputed - f.attended;
    const ideal = (linears * perFlop + f.attended / c.peak_flops) / n;
    const elementwise = moved(c) / c.bandwidth;
    const overhead = c.overhead * c.n_layers * c.accumulate;
    const busy = products + attention + elementwise + overhead;
    const sent = communication(c), hidden = sent.fsdp_s + sent.data_s;
    const seconds = Math.max(busy, hidden) + sent.tensor_s;
    const parts = {products, "memory bandwidth": elementwise, attention, overhead};
    const longest = Math.max(...Object.values(parts));
    const exceeded = Math.max(hidden, sent.tensor_s) > busy;
    return {
      seconds, products, attention, elementwise, overhead, hidden,
      exposed: seconds - busy,
      limit: exceeded ? "communication" : Object.keys(parts).find(name => parts[name] === longest),
      mfu: ideal / seconds,
      tokens_per_s: c.batch_size * c.seq_len / seconds,
    };
  };

  const moved = c => {
    const tokens = local_tokens(c), heads = c.d_model / c.d_head / c.tensor, plain = c.remat === "none";
    const rows = tokens * (8 * c.d_model + 3 * c.d_ff / c.tensor) * c.act_bytes;
    const square = c.attention === "cudnn" ? 0
      : 4 * tokens * heads * c.seq_len * attended(c) * (plain ? 14 : 18);
    const logits = 4 * tokens * c.vocab_size / c.tensor * 6;
    const update = parameters(c).total / c.fsdp / c.tensor * (2 * (c.param_bytes + 8) + 12);
    return c.accumulate * (c.n_layers * ((plain ? 6 : 8) * rows + square) + logits) + update;
  };

  // ---------------------------------------------------------------- umup.plan.budgets
  const spare = c => c.memory * c.usable - memory(c).total;

  const divides_evenly = c => c.batch_size % (c.data * c.fsdp * c.accumulate) === 0
    && c.d_model % c.fsdp === 0 && c.d_model / c.d_head % c.tensor === 0
    && c.d_ff % c.tensor === 0 && c.vocab_size % c.tensor === 0;

  const divisors = n => {
    const small = [];
    for (let i = 1; i * i <= n; i++) if (n % i === 0) small.push(i);
    return [...small, ...small.filter(i => i * i < n).map(i => n / i).reverse()];
  };

  const doublings = (first, last) => {
    const found = [];
    for (let n = first; n <= last; n *= 2) found.push(n);
    return found;
  };

  // the item of the least value, the first of several; null of none
  const least = (items, value) => {
    let best = null, lowest = Infinity;
    for (const item of items) {
      const own = value(item);
      if (own < lowest) [best, lowest] = [item, own];
    }
    return best;
  };

  const meshes = (c, total) => doublings(1, Math.min(total, c.node_devices))
    .filter(tensor => total % tensor === 0 && c.batch_size % (total / tensor) === 0)
    .flatMap(tensor => divisors(total / tensor).map(
      fsdp => ({...c, data: total / tensor / fsdp, fsdp, tensor, accumulate: 1})))
    .filter(divides_evenly);

  const layouts = (c, total) => meshes(c, total).map(fastest).filter(Boolean);

  const fastest = c => {
    const trials = ["none", "dots", "full"].map(remat => inParts({...c, remat})).filter(Boolean);
    return quickest(trials.map(one => ({case: one, seconds: step_time(one).seconds})));
  };

  const inParts = c => {
    const trial = doublings(1, c.batch_size).map(accumulate => ({...c, accumulate}))
      .find(one => !divides_evenly(one) || spare(one) >= 0);
    return trial && divides_evenly(trial) ? trial : null;
  };

  const quickest = found => least(found, layout => layout.seconds);
  const fastest_layout = (c, total) => quickest(layouts(c, total));

  const leanest = (c, total) => least(
    meshes(c, total)
      .flatMap(mesh => doublings(1, c.batch_size).map(accumulate => ({...mesh, remat: "full", accumulate})))
      .filter(divides_evenly),
    one => memory(one).total);

  const smallest_cluster = (c, total) => {
    for (const more of doublings(total, 2 ** 16)) {
      const found = fastest_layout({...c, batch_size: Math.max(c.batch_size, more)}, more);
      if (found) return found;
    }
    return null;
  };

  const with_depth = (c, n_layers) => {
    const d_model = 128 * Math.max(Math.floor(c.d_model / c.n_layers * n_layers / 128 + 0.5), 1);
    const d_ff = 128 * Math.max(Math.floor(c.d_ff / c.d_model * d_model / 128 + 0.5), 1);
    return {...c, n_layers, d_model, d_ff};
  };

  const largest = (c, total, seconds, tokens_per_parameter) => {
    const deepest = 160;
    let best = {layout: null, tokens: 0, bound: "memory"};
    for (let n_layers = 2; n_layers <= deepest; n_layers++) {
      const trial = with_depth(c, n_layers), size = parameters(trial).total;
      if (size * (c.param_bytes + 8) / total > c.memory * c.usable) break;
      const layout = fastest_layout(trial, total);
      if (layout === null) continue;
      const tokens = seconds / layout.seconds * c.batch_size * c.seq_len;
      if (tokens < tokens_per_parameter * size) return {...best, bound: "time"};
      best = {layout, tokens, bound: n_layers === deepest ? "depth" : "memory"};
    }
    return best;
  };

  const spent = (c, seconds) => {
    const tokens = step_time(c).tokens_per_s * seconds;
    return {
      steps: tokens / (c.batch_size * c.seq_len),
      tokens,
      tokens_per_parameter: tokens / parameters(c).total,
      dollars: seconds / 3600 * devices(c) * c.usd_per_hour,
    };
  };

  const allocations = (budget, tokens_per_parameter, inference_tokens) => ({
    "rule of thumb": rule_of_thumb(budget, tokens_per_parameter),
    "Chinchilla": chinchilla(budget),
    "Kaplan": kaplan(budget),
    "over-trained": overtrained(budget, inference_tokens),
  });

  const allocation = (budget, n) => {
    const d = budget / (6 * n);
    return {parameters: n, tokens: d, loss: chinchilla_loss(n, d)};
  };

  const kaplan = budget => allocation(budget, 1.3e9 * (budget / 8.64e19) ** 0.73);

  const E = 1.8172, A = 482.01, ALPHA = 0.3478, B = 2085.43, BETA = 0.3658;

  const chinchilla_loss = (n, d) => E + A / n ** ALPHA + B / d ** BETA;

  const chinchilla = budget => {
    const ratio = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA));
    return allocation(budget, ratio * (budget / 6) ** (BETA / (ALPHA + BETA)));
  };

  const rule_of_thumb = (budget, tokens_per_parameter) => {
    const n = (budget / (6 * tokens_per_parameter)) ** 0.5, d = tokens_per_parameter * n;
    return {parameters: n, tokens: d, loss: chinchilla_loss(n, d)};
  };

  const overtrained = (budget, inference_tokens) => {
    let low = 0, high = Math.log(chinchilla(budget).parameters);
    for (let i = 0; i < 100; i++) {
      const middle = (low + high) / 2, n = Math.exp(middle), d = budget / (6 * n);
      const slope = ALPHA * A / n ** 1.3478 / (BETA * B / d ** 1.3658);
      if ((6 * d + 2 * inference_tokens) / (6 * n) > slope) high = middle;
      else low = middle;
    }
    return allocation(budget, Math.exp((low + high) / 2));
  };

  return {
    assemble, devices, local_tokens, parameters, attended, flops, kept, memory, reach, communication,
    step_time, spare, divides_evenly, divisors, meshes, layouts, fastest, fastest_layout, leanest,
    smallest_cluster, with_depth, largest, spent, allocations, kaplan, chinchilla_loss, chinchilla,
    rule_of_thumb, overtrained,
  };
})();
