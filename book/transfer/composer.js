// The page of the composer: reads the form, asks `transfer`, writes η with its interval and what each axis adds.
// `composing` is its data: motions with their verdicts and links, and the words for axes.
const composer = (() => {
  "use strict";
  const SIZES = ["width", "depth", "seq_len", "batch", "steps"];
  const RUNS = ["proxy", "target"];
  const FIELDS = RUNS.flatMap(run => [...SIZES, "schedule"].map(name => `${run}_${name}`));
  const NUMBERS = [...FIELDS.filter(name => !name.endsWith("schedule")), "eta", "error"];
  const ALL = ["scheme", ...FIELDS, "eta", "error"];

  const root = document.getElementById("composer");
  const form = root.querySelector("form");
  const at = name => root.querySelector(`.planner-${name}`);
  let state;

  const minus = text => text.replace("-", "−");
  const number = (x, digits = 2) => Number.isFinite(x) ? minus(x.toFixed(digits)) : (x < 0 ? "−∞" : "∞");
  const interval = ([value, low, high], digits) => `${number(value, digits)} [${number(low, digits)}, ${number(high, digits)}]`;
  const rate = x => x === Infinity ? "∞" : x === 0 ? "0" : String(Number(x.toPrecision(3)));

  const wrong = s => {
    const found = {};
    for (const name of NUMBERS) {
      if (!Number.isFinite(s[name])) found[name] = "a number";
      else if (s[name] < 0 || (s[name] === 0 && name !== "error")) found[name] = "more than 0";
      else if (!["eta", "error"].includes(name) && !Number.isInteger(s[name])) found[name] = "a whole number";
    }
    return found;
  };

  const runOf = (s, run) => Object.fromEntries([...SIZES, "schedule"].map(name => [name, s[`${run}_${name}`]]));

  const compute = s => {
    const x = Math.log2(s.eta);
    return transfer.carry(composing.motions, s.scheme, runOf(s, "proxy"), runOf(s, "target"), [x, x - s.error, x + s.error]);
  };

  const row = one => {
    const name = composing.axes[one.axis];
    const doublings = one.axis === "together" ? "" : number(one.doublings);
    if (!one.motion)
      return `<tr class="bad"><td>${name}</td><td>${doublings}</td><td>not measured</td><td class="note"></td></tr>`;
    const far = one.beyond > 1e-9 ? `<strong class="composer-far">${number(one.beyond, 1)} doublings beyond what was measured.</strong> ` : "";
    const {claim, href, verdict, where} = one.motion;
    return `<tr><td>${name}</td><td>${doublings}</td><td>${interval(one.octaves)}</td>`
      + `<td class="note">${far}<a href="${href}">${claim}</a>: ${verdict}${where && `; ${where}`}</td></tr>`;
  };

  const show = () => {
    for (const name of ALL) {
      const field = form.elements[name];
      const value = Number.isNaN(state[name]) ? "" : String(state[name]);
      if (document.activeElement !== field || field.value === "") field.value = value;
    }
    const errors = wrong(state);
    for (const field of form.elements)
      if (field.name) field.setAttribute("aria-invalid", String(field.name in errors));
    at("link").querySelector("a").href = "#" + new URLSearchParams(ALL.map(name => [name, state[name]]));
    const bad = Object.entries(errors);
    at("verdict").classList.toggle("bad", bad.length > 0);
    if (bad.length) {
      const label = name => form.elements[name].getAttribute("aria-label");
      at("verdict").innerHTML = bad.map(([name, what]) => `<p><strong>${label(name)}</strong>: ${what}.</p>`).join("");
      at("out").innerHTML = "";
      return;
    }
    const found = compute(state);
    const [value, low, high] = found.eta;
    const open = Number.isFinite(low) && Number.isFinite(high) ? ""
      : "<p>Along an axis nothing is measured: the interval is not bounded. Tune on the target's own value of it.</p>";
    const far = found.terms.some(one => one.beyond > 1e-9)
      ? "<p>It extrapolates: the interval holds only if the motions go on as they were measured.</p>" : "";
    at("verdict").innerHTML = `<p><strong>η = ${rate(2 ** value)} [${rate(2 ** low)}, ${rate(2 ** high)}]</strong> for the `
      + `target; log₂ η = ${interval(found.eta)}.</p>${open}${far}`;
    at("out").innerHTML = found.terms.length === 0 ? "<p>Proxy and target are the same: nothing moves η.</p>"
      : `<div class="planner-wide"><table><thead><tr><th scope="col">what changes</th><th scope="col">doublings</th>`
        + `<th scope="col">octaves of η</th><th scope="col" class="note">claim: verdict</th></tr></thead>`
        + `<tbody>${found.terms.map(row).join("")}</tbody></table></div>`;
  };

  const fromAddress = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    const next = {...composing.start};
    for (const name of ALL) {
      if (!given.has(name)) continue;
      if (NUMBERS.includes(name)) next[name] = Number(given.get(name) || NaN);
      else if ([...form.elements[name].options].some(option => option.value === given.get(name)))
        next[name] = given.get(name);
    }
    return next;
  };

  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", event => {
    const {name, value} = event.target;
    state[name] = !NUMBERS.includes(name) ? value : value === "" ? NaN : Number(value);
    show();
    history.replaceState(null, "", at("link").querySelector("a").href);
  });
  // A link to a place on the page is no run.
  addEventListener("hashchange", () => {
    if (!location.hash.includes("=")) return;
    state = fromAddress();
    show();
  });

  form.elements.scheme.innerHTML = Object.entries(composing.schemes).map(
    ([name, title]) => `<option value="${name}">${title}</option>`).join("");
  state = fromAddress();
  show();
  return {compute, wrong};
})();
