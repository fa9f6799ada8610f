// The page of the planner: reads the form, asks `formulas`, writes the answers. It computes nothing
// that `formulas` has; `planning` is its data (machines, precisions, presets), see umup.book.planner_page.
const planner = (() => {
  "use strict";
  const GIB = 2 ** 30;
  const SHAPE = ["n_layers", "d_model", "d_ff", "d_head", "vocab_size", "seq_len", "batch_size"];
  const WHOLE = [...SHAPE, "devices"];
  const NUMBERS = [...WHOLE, "hours", "price", "ratio", "inference", "eta"];
  const NAMES = ["precision", "attention", "machine", "scheme"];
  const ZERO_WILL_DO = ["price", "inference"];
  const BOUNDS = {
    time: "A deeper one would see too few tokens.",
    memory: "Memory limits it, not time: no deeper one has a layout that divides evenly and fits.",
    depth: "It is the deepest that is tried.",
  };

  // ---------------------------------------------------------------- numbers for a reader
  const digits = (x, n = 3) => Number(x.toPrecision(n)).toLocaleString("en", {maximumFractionDigits: 12});
  const count = x => {
    const units = [["E", 1e18], ["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]];
    const [unit, size] = units.find(([, size]) => x >= size) || ["", 1];
    return digits(x / size) + (unit && "\u00a0" + unit);
  };
  const gib = x => digits(x / GIB) + "\u00a0GiB";
  const time = s => {
    if (s < 1) return digits(s * 1e3) + "\u00a0ms";
    if (s < 120) return digits(s) + "\u00a0s";
    return s < 172800 ? digits(s / 3600) + "\u00a0h" : digits(s / 86400) + "\u00a0days";
  };
  const percent = x => (100 * x).toFixed(1) + "\u00a0%";
  const dollars = x => "$" + (x < 100 ? x.toFixed(2) : Math.round(x).toLocaleString("en"));
  const layout = c => `mesh ${c.data}×${c.fsdp}×${c.tensor}, remat ${c.remat}`
    + (c.accumulate > 1 ? `, ${c.accumulate} parts per batch` : "");

  // ---------------------------------------------------------------- the state and its case
  const start = () => ({
    ...planning.presets["7B"], precision: "bf16", attention: "cudnn", machine: "h100", devices: 64,
    hours: 72, price: planning.machines.h100.usd_per_hour, ratio: 20, inference: 1000, eta: 1, scheme: planning.schemes[0],
  });

  const presetOf = s => Object.keys(planning.presets).find(
    name => SHAPE.every(key => planning.presets[name][key] === s[key])) || "";

  // field → what is wrong with it
  const wrong = s => {
    const found = {};
    for (const key of NUMBERS) {
      const whole = WHOLE.includes(key), least = whole || ZERO_WILL_DO.includes(key);
      if (!Number.isFinite(s[key]) || (whole && !Number.isInteger(s[key])))
        found[key] = `a ${whole ? "whole " : ""}number`;
      else if (s[key] < 0 || (s[key] === 0 && (whole || !least))) found[key] = "more than 0";
    }
    if (s.devices > 65536) found.devices = "at most 65,536";
    if (s.n_layers > 1000) found.n_layers = "at most 1,000";
    if (s.batch_size > 2 ** 20) found.batch_size = "at most 2²⁰";
    const machine = planning.machines[s.machine], precision = planning.precisions[s.precision];
    if (!machine[precision.products])
      found.precision = `another precision: ${s.machine} has no ${precision.products.slice(7)} products`;
    if (!found.d_head && s.d_model % s.d_head) found.d_head = `a divisor of the width, ${s.d_model}`;
    if (s.attention === "cudnn" && !machine.fused)
      found.attention = `causal blocks or the whole square on ${s.machine}: the kernel is NVIDIA's`;
    else if (s.attention === "cudnn" && (precision.act_bytes !== 2 || s.d_head % 8))
      found.attention = "the kernel with bf16 or FP8 and heads in eights, or another";
    return found;
  };

  const caseOf = s => {
    const run = {remat: "none", attention: s.attention, accumulate: 1, data: 1, fsdp: 1, tensor: 1};
    for (const key of SHAPE) run[key] = s[key];
    const machine = {...planning.machines[s.machine], usd_per_hour: s.price};
    return formulas.assemble(run, planning.precisions[s.precision], machine);
  };

  const compute = s => {
    const c = caseOf(s);
    const found = formulas.layouts(c, s.devices).sort((a, b) => a.seconds - b.seconds);
    const fits = found.length > 0;
    const chosen = fits ? found[0].case : formulas.leanest(c, s.devices);
    const largest = formulas.largest(c, s.devices, s.hours * 3600, s.ratio);
    const answer = {
      c, found, fits, chosen, parameters: formulas.parameters(c), largest, room: c.memory * c.usable,
      cluster: fits ? null : formulas.smallest_cluster(c, s.devices),
    };
    if (chosen) Object.assign(answer, {
      memory: formulas.memory(chosen), step: formulas.step_time(chosen), flops: formulas.flops(chosen),
      communication: formulas.communication(chosen), spent: formulas.spent(chosen, s.hours * 3600),
    });
    if (largest.layout) {
      const budget = 6 * formulas.parameters(largest.layout.case).total * largest.tokens;
      answer.allocations = formulas.allocations(budget, s.ratio, s.inference * 1e9);
    }
    return answer;
  };

  // ---------------------------------------------------------------- the run file of `umup train`
  const runFile = (s, a) => {
    const c = a.chosen, precision = planning.fields[s.precision];
    const wanted = Math.ceil(s.ratio * a.parameters.total / (c.batch_size * c.seq_len));
    const steps = Math.max(1, Math.min(wanted, Math.floor(a.spent.steps)));
    const shape = SHAPE.filter(key => key !== "batch_size").map(key => [key, c[key]]);
    const groups = {
      model: [...shape, ["dtype", precision.dtype], ["recipe", precision.recipe], ["remat", c.remat],
        ["attention", c.attention]],
      optim: [["steps", steps], ["batch_size", c.batch_size], ["warmup_steps", Math.floor(planning.warmup * steps)],
        ["accumulate", c.accumulate]],
      hps: [["eta", Number(s.eta.toPrecision(4))]],
      mesh: [["data", c.data], ["fsdp", c.fsdp], ["tensor", c.tensor]],
    };
    const lines = [`# Planned for ${s.devices} × ${s.machine}.`, `scheme: ${s.scheme}`, "corpus: sotu  # yours: file:PATH",
      "tokenizer: bytes  # yours: one whose vocabulary is at most vocab_size"];
    for (const [name, fields] of Object.entries(groups))
      lines.push(`${name}:`, ...fields.map(([field, value]) => `  ${field}: ${value}`));
    return lines.join("\n") + "\n";
  };

  // ---------------------------------------------------------------- the answers as HTML
  const table = (head, rows) => {
    const titles = head.map(title => `<th scope="col">${title}</th>`).join("");
    return `<div class="planner-wide"><table>${head.length ? `<thead><tr>${titles}</tr></thead>` : ""}`
      + `<tbody>${rows.join("")}</tbody></table></div>`;
  };
  const row = (cells, kind = "", note = false) => `<tr${kind && ` class="${kind}"`}>`
    + cells.map((cell, i) => `<td${note && i === cells.length - 1 ? ' class="note"' : ""}>${cell}</td>`).join("") + "</tr>";

  // parts: [name, value, what it is]; one colour each, in the order of bar and table
  const bar = (parts, scale, show, total, label, end = "", mark = null) => {
    const shown = parts.filter(part => part[1] > 0);
    const spans = shown.map(([, value], i) =>
      `<span class="s${i + 1}" style="width:${100 * value / scale}%"></span>`).join("");
    const line = mark === null ? "" : `<i style="left:calc(${100 * mark / scale}% - 3px)"></i>`;
    const said = shown.map(([name, value]) => `${name} ${show(value)}`).join(", ");
    const rows = shown.map(([name, value, what], i) => row([
      `<span class="planner-key s${i + 1}"></span>${name}`, show(value), percent(value / total), what], "", true));
    const usable = mark === null ? "" : `<span>dashed: usable, ${show(mark)}</span>`;
    return `<div class="planner-bar" role="img" aria-label="${label}: ${said}">${spans}${line}</div>`
      + `<div class="planner-scale"><span>0</span>${usable}<span>${end}${show(scale)}</span></div>`
      + table([], [...rows, row(["total", show(total), "", ""], "total", true)]);
  };

  const verdict = (s, a) => {
    const on = `${s.devices.toLocaleString("en")} × ${s.machine}`;
    const wide = planning.machines[s.machine].tflops_float8 || s.precision !== "FP8" ? ""
      : `<p>${s.machine} has no FP8 products: they run in bf16.</p>`;
    if (a.fits) {
      return `<p><strong>Fits</strong> on ${on}. Fastest: ${layout(a.chosen)}; ${time(a.step.seconds)} per step, `
        + `limited by ${a.step.limit}.</p>${wide}`;
    }
    const other = a.cluster && a.cluster.case;
    const more = other
      ? `${formulas.devices(other).toLocaleString("en")} devices would do: ${layout(other)}`
        + (other.batch_size > s.batch_size ? `, batch ${other.batch_size}.` : ".")
      : "No number of devices up to 65,536 would do with this shape.";
    if (!a.chosen)
      return `<p><strong>Cannot be split</strong> over ${on}: no mesh divides batch, width, heads, `
        + `feed-forward and vocabulary evenly.</p><p>${more}</p>${wide}`;
    const need = a.memory.total;
    return `<p><strong>Does not fit</strong> on ${on}: the leanest layout (${layout(a.chosen)}) needs `
      + `${gib(need)} per device, ${gib(need - a.room)} more than the ${gib(a.room)} usable.</p><p>${more}</p>${wide}`;
  };

  const tiles = pairs => `<dl class="planner-tiles">${pairs.map(
    ([name, value]) => `<div><dt>${name}</dt><dd>${value}</dd></div>`).join("")}</dl>`;

  const memoryPart = a => {
    const m = a.memory;
    const parts = [
      ["state", m.state, "weights and Adam's two moments"], ["gradients", m.gradients, "one per weight"],
      ["copies", m.copies, "moments that cannot be updated in place"],
      ["kept", m.kept, "activations saved for the backward pass"],
      ["workspace", m.workspace, "one block, or the readout and its loss"],
    ];
    return "<h3>Memory per device</h3>"
      + bar(parts, Math.max(m.total, a.c.memory), gib, m.total, "bytes per device",
        m.total > a.c.memory ? "" : "memory ", a.room);
  };

  const timePart = a => {
    const t = a.step;
    const parts = [
      ["products", t.products, "of linears and readout"], ["attention", t.attention, "its products"],
      ["elementwise", t.elementwise, "at the memory's bandwidth"], ["overhead", t.overhead, "of each block"],
      ["exposed", t.exposed, "communication that does not overlap"],
    ];
    return "<h3>Time of a step</h3>" + bar(parts, t.seconds, time, t.seconds, "seconds of a step")
      + `<p><small>Gathers and sums over fsdp and data take ${time(t.hidden)} and run beside the rest. `
      + `${count(t.tokens_per_s)} tokens/s.</small></p>`;
  };

  const parameterPart = a => {
    const p = a.parameters;
    const parts = [["embedding", p.embedding, "looked up, no product"], ["attention", p.attention, "four linears per layer"],
      ["mlp", p.mlp, "three linears per layer"], ["readout", p.readout, "not tied to the embedding"]];
    return "<h3>Parameters</h3>" + bar(parts, p.total, count, p.total, "parameters");
  };

  const arithmetic = a => {
    const f = a.flops, k = a.communication;
    const flop = [["6ND", f.six_nd], ["exact: products of the model, attention's square", f.model],
      ["executed: causal savings, recomputation", f.compiled], ["of which attention", f.attention],
      ["of which recomputed", f.recomputed]];
    const moved = [["fsdp: gathered weights", k.gathered], ["fsdp: summed gradients", k.scattered],
      ["fsdp: embedding", k.lookup], ["data: summed gradients", k.replicas], ["tensor: summed activations", k.sums]];
    return "<details><summary>FLOPs and communication of a step</summary>"
      + table(["FLOPs, all devices", "", "of 6ND"], flop.map(([n, v]) => row([n, count(v), percent(v / f.six_nd)])))
      + table(["received by a device", ""], moved.map(([n, v]) => row([n, gib(v)]))) + "</details>";
  };

  const layoutPart = a => {
    const rows = a.found.slice(0, 12).map(({case: c}) => {
      const t = formulas.step_time(c);
      return row([`${c.data}×${c.fsdp}×${c.tensor}`, c.remat, c.accumulate, time(t.seconds), percent(t.mfu),
        gib(formulas.memory(c).total), t.limit]);
    });
    const head = ["data×fsdp×tensor", "remat", "parts", "step", "MFU", "memory", "limited by"];
    const most = a.found.length > 12 ? `the fastest 12 of ${a.found.length}` : a.found.length;
    return `<details><summary>Layouts that fit: ${most}</summary>${table(head, rows)}</details>`;
  };

  const filePart = (s, a) => `<details class="planner-file"><summary>The run file, for umup train</summary>`
    + `<pre tabindex="0">${runFile(s, a)}</pre><p><small>Steps see ${digits(s.ratio)} tokens per parameter, or as many as `
    + `fit into ${time(3600 * s.hours)}; a quarter warms up, as in what this book measured.</small></p></details>`;

  const inverse = (s, a) => {
    const head = `<h3>The other way round: the largest model for ${time(3600 * s.hours)}</h3>`;
    if (!a.largest.layout)
      return `${head}<p>Not even two layers of these proportions see ${digits(s.ratio)} tokens per parameter in the `
        + "time, or none has a layout: widths go in steps of 128, which the head size must divide.</p>";
    const {layout: {case: c, seconds}, tokens, bound} = a.largest;
    const p = formulas.parameters(c).total;
    const rows = Object.entries(a.allocations).map(([name, one]) => row([
      name, count(one.parameters), count(one.tokens), digits(one.tokens / one.parameters), one.loss.toFixed(3)]));
    return `${head}<p><strong>${count(p)} parameters</strong> in the proportions above: ${c.n_layers} layers of width `
      + `${c.d_model.toLocaleString("en")}, d_ff ${c.d_ff.toLocaleString("en")}, on ${count(tokens)} tokens; `
      + `${layout(c)}, ${time(seconds)} per step, MFU ${percent(formulas.step_time(c).mfu)}. `
      + `${BOUNDS[bound]} Its training FLOPs, spent by other rules:</p>`
      + table(["allocation", "parameters", "tokens", "tokens each", "loss"], rows)
      + `<p><small>Rule of thumb: ${digits(s.ratio)} tokens per parameter. Over-trained: least FLOPs of training and `
      + `${count(s.inference * 1e9)} tokens of inference. Loss in nats per token, of one published fit: only differences `
      + "carry over. Kaplan's parameters are without embeddings.</small></p>";
  };

  // ---------------------------------------------------------------- the page
  const root = document.getElementById("planner");
  const form = root.querySelector("form");
  const at = name => root.querySelector(`.planner-${name}`);
  let state = start();

  const options = (name, values) => {
    form.elements[name].innerHTML = values.map(([value, text]) => `<option value="${value}">${text}</option>`).join("");
  };

  const fromAddress = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    const next = start();
    for (const key of NUMBERS) if (given.has(key)) next[key] = Number(given.get(key) || NaN);
    for (const key of NAMES) {
      const known = [...form.elements[key].options].map(option => option.value);
      if (known.includes(given.get(key))) next[key] = given.get(key);
    }
    return next;
  };

  const show = () => {
    for (const key of [...NUMBERS, ...NAMES]) {
      const field = form.elements[key];
      const value = Number.isNaN(state[key]) ? "" : String(state[key]);
      if (document.activeElement !== field || field.value === "") field.value = value;
    }
    form.elements.preset.value = presetOf(state);
    const machine = planning.machines[state.machine];
    at("machine").textContent = `${state.machine}: ${machine.description}. Source: ${machine.source}.`;
    const address = "#" + new URLSearchParams([...NUMBERS, ...NAMES].map(key => [key, state[key]]));
    at("link").querySelector("a").href = address;

    const errors = wrong(state);
    for (const field of form.elements)
      if (field.name) field.setAttribute("aria-invalid", String(field.name in errors));
    const bad = Object.entries(errors);
    if (bad.length) {
      const label = key => form.elements[key].closest("label").firstChild.textContent.trim();
      at("verdict").innerHTML = bad.map(([key, what]) => `<p><strong>${label(key)}</strong>: ${what}.</p>`).join("");
      at("verdict").classList.add("bad");
      at("out").innerHTML = "";
      return;
    }
    const a = compute(state);
    at("verdict").innerHTML = verdict(state, a);
    at("verdict").classList.toggle("bad", !a.fits);
    const summary = [["parameters", count(a.parameters.total)]];
    if (a.fits) summary.push(
      ["memory per device", gib(a.memory.total)], ["time per step", time(a.step.seconds)], ["MFU", percent(a.step.mfu)],
      [`tokens in ${time(3600 * state.hours)}`, count(a.spent.tokens)],
      ["tokens per parameter", digits(a.spent.tokens_per_parameter)], ["steps", count(a.spent.steps)],
      ["cost", dollars(a.spent.dollars)]);
    at("out").innerHTML = tiles(summary) + (a.chosen ? memoryPart(a) : "") + (a.fits ? timePart(a) : "")
      + parameterPart(a) + (a.chosen ? arithmetic(a) : "") + (a.fits ? layoutPart(a) + filePart(state, a) : "") + inverse(state, a);
  };

  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", event => {
    const {name, value} = event.target;
    if (name === "preset") Object.assign(state, planning.presets[value] || {});
    else if (NAMES.includes(name)) state[name] = value;
    else state[name] = value === "" ? NaN : Number(value);
    const machine = planning.machines[state.machine];
    if (name === "machine") state.price = machine.usd_per_hour;
    // A choice that takes the kernel away takes the next best with it.
    const without = !machine.fused || planning.precisions[state.precision].act_bytes !== 2;
    if ((name === "machine" || name === "precision") && without && state.attention === "cudnn")
      state.attention = "blocked";
    show();
    history.replaceState(null, "", at("link").querySelector("a").href);
  });
  // A link to a place on the page is no plan.
  addEventListener("hashchange", () => {
    if (!location.hash.includes("=")) return;
    state = fromAddress();
    show();
  });

  options("preset", [...Object.keys(planning.presets).map(name => [name, name]), ["", "by hand"]]);
  options("precision", Object.keys(planning.precisions).map(name => [name, name]));
  options("scheme", planning.schemes.map(name => [name, {umup: "u-μP", sp: "SP"}[name]]));
  options("machine", Object.keys(planning.machines).map(name => [name, name]));
  state = fromAddress();
  show();
  return {start, caseOf, compute, wrong};
})();
