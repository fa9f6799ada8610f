/* Curves of loss against learning rate: a panel per scheme and a line per size, drawn by uPlot, and the price of "my η" at
   every size. In the data x is log2 η; in panels it is the distance to `from`, so that one place is one transfer in all. */
(() => {
  "use strict";
  const box = document.getElementById("interactive-curves");
  const form = box?.querySelector("form"), found = document.getElementById("curves-data");
  if (!found || !window.uPlot) return;
  const { views, curves } = JSON.parse(found.textContent);
  const { view: choice, shown, eta } = form.elements, said = form.querySelector("output");
  const chips = form.querySelector(".curves-chips"), place = box.querySelector(".curves-panels");
  const STEP = 0.05, HEIGHT = 230, ABOVE = [-0.02, 0.25];
  const root = document.documentElement, dark = () => root.dataset.theme === "dark";
  const colour = name => getComputedStyle(root).getPropertyValue(name).trim();
  const above = () => shown.selectedIndex === 1;
  const hiddenSchemes = new Set();
  let panels = [], nearest = 0;

  const number = (value, digits) => value.toFixed(digits).replace("-", "−");
  const power = x => `2<sup>${number(x, 2)}</sup>`;
  const make = (tag, parent, properties) => parent.appendChild(Object.assign(document.createElement(tag), properties));
  const view = () => views[choice.selectedIndex];
  const shade = i => (dark() ? view().dark : view().light)[i];
  const mine = panel => panel.from + eta.valueAsNumber;

  // Points are [log2 η, mean, low, high, seeds, diverged runs], numbers null where there is none.
  const lowest = curve => Math.min(...curve.points.filter(p => p[1] !== null).map(p => p[1]));
  const level = curve => above() ? lowest(curve) : 0;

  /* The loss at an η above the lowest of a curve, linear between its points; or why there is none. */
  function price(curve, x) {
    const points = curve.points, after = points.findIndex(p => p[0] >= x - 1e-9);
    const left = points[after - 1], right = points[after];
    if (after < 0 || (!left && right[0] > x + 1e-9)) return "outside what was measured";
    const share = left ? (right[0] - x) / (right[0] - left[0]) : 0;
    if ((share < 1 - 1e-9 && right[5]) || (share > 1e-9 && left[5])) return "diverged";
    return right[1] + (left ? share * (left[1] - right[1]) : 0) - lowest(curve);
  }

  function tell() {
    const current = view(), by = eta.valueAsNumber;
    const where = `each scheme's best at ${current.size} ${current.values[0]}`;
    const moved = by ? `${number(Math.abs(by), 2)} octaves ${by > 0 ? "above" : "below"} ` : "";
    said.textContent = moved + where;
    eta.setAttribute("aria-valuetext", said.textContent);
    for (const panel of panels) {
      const x = mine(panel);
      panel.caption.innerHTML = `price at η = ${power(x)} = ${(2 ** x).toPrecision(2)}`;
      panel.prices.forEach(([cell, curve]) => {
        const asked = price(curve, x);
        cell.textContent = typeof asked === "number" ? number(asked, 3) : asked;
      });
      panel.plot.redraw(false);
    }
  }

  /* The measured point under the cursor, in words; in the other panels that of the same size. */
  function read() {
    for (const panel of panels) {
      const { left, top, idxs } = panel.plot.cursor;
      if (left >= 0 && panel.node.matches(":hover")) {
        const away = i => Math.abs(panel.plot.valToPos(panel.plot.data[i][idxs[i]], "y") - top);
        nearest = panel.series.filter(i => idxs[i] != null).sort((a, b) => away(a) - away(b))[0];
      }
    }
    for (const panel of panels) {
      const curve = panel.curves[nearest - 1], { left, idxs } = panel.plot.cursor;
      const x = curve && left >= 0 && idxs[nearest] != null ? panel.plot.data[0][idxs[nearest]] : null;
      const point = x === null ? null : curve.points.find(p => Math.abs(p[0] - panel.from - x) < 1e-6);
      panel.reading.innerHTML = point ? words(view(), point) : "";
    }
  }

  function words(current, [x, mean, low, high, seeds, diverged]) {
    const interval = low === null ? "" : ` [${number(low, 3)}, ${number(high, 3)}]`;
    const lost = diverged ? `, ${diverged} diverged` : "";
    return `${current.size} ${current.values[nearest - 1]}, η = ${power(x)}: <b>${number(mean, 3)}</b>${interval}, `
      + `${seeds} seed${seeds > 1 ? "s" : ""}${lost}`;
  }

  /* What uPlot does not draw: intervals below the lines; stars, crosses and "my η" above them. */
  function under(plot, panel) {
    drawing(plot, (pen, x, y) => panel.curves.forEach((curve, i) => {
      if (!curve) return;
      const known = curve.points.filter(p => p[2] !== null && p[4] > 2);  // of two seeds it says little
      pen.fillStyle = shade(i) + "33";
      pen.beginPath();
      known.forEach(p => pen.lineTo(x(p[0]), y(p[2] - level(curve))));
      known.reverse().forEach(p => pen.lineTo(x(p[0]), y(p[3] - level(curve))));
      pen.fill();
    }), panel);
  }

  function over(plot, panel) {
    drawing(plot, (pen, x, y, size) => {
      const ink = colour("--pst-color-text-base"), top = plot.bbox.top + 6 * size;
      pen.lineWidth = 1.5 * size;
      panel.curves.forEach((curve, i) => {
        if (!curve) return;
        pen.strokeStyle = shade(i);
        for (const [at, , , , , diverged] of curve.points) if (diverged) {
          pen.beginPath();
          for (const s of [-1, 1]) { pen.moveTo(x(at) - 3 * size, top - 3 * s * size); pen.lineTo(x(at) + 3 * size, top + 3 * s * size); }
          pen.stroke();
        }
        if (!curve.best) return;
        const [at, low, high, loss] = curve.best, [cx, cy] = [x(at), y(loss - level(curve))];
        pen.strokeStyle = ink;
        pen.fillStyle = shade(i);
        pen.beginPath(); pen.moveTo(x(low), cy); pen.lineTo(x(high), cy); pen.stroke();
        pen.lineWidth = size;
        pen.beginPath();
        for (let k = 0; k < 10; k++) {
          const r = (k % 2 ? 2.6 : 6.2) * size, turn = Math.PI * k / 5;
          pen.lineTo(cx + r * Math.sin(turn), cy - r * Math.cos(turn));
        }
        pen.closePath(); pen.fill(); pen.stroke();
        pen.lineWidth = 1.5 * size;
      });
      pen.strokeStyle = colour("--pst-color-secondary");
      pen.lineWidth = 2 * size;
      pen.beginPath(); pen.moveTo(x(mine(panel)), plot.bbox.top); pen.lineTo(x(mine(panel)), plot.bbox.top + plot.bbox.height); pen.stroke();
    }, panel);
  }

  function drawing(plot, draw, panel) {
    const pen = plot.ctx, { left, top, width, height } = plot.bbox;
    pen.save();
    pen.beginPath(); pen.rect(left, top, width, height); pen.clip();
    draw(pen, at => plot.valToPos(at - panel.from, "x", true), loss => plot.valToPos(loss, "y", true), uPlot.pxRatio);
    pen.restore();
  }

  /* The table for uPlot: all measured η of a panel, and for each curve its means, null elsewhere. */
  function columns(panel) {
    const places = [...new Set(panel.curves.flatMap(curve => curve ? curve.points.map(p => p[0]) : []))].sort((a, b) => a - b);
    const means = panel.curves.map(curve => places.map(at => {
      const point = curve?.points.find(p => p[0] === at);
      return point && point[1] !== null ? point[1] - level(curve) : null;
    }));
    return [places.map(at => at - panel.from), ...means];
  }

  function closest(plot, series, index, x) {
    const at = plot.data[0];
    return at.reduce((best, value, i) =>
      plot.data[series][i] === null || (best !== null && Math.abs(at[best] - x) <= Math.abs(value - x)) ? best : i, null);
  }

  function plotted(panel, range) {
    const ink = colour("--pst-color-text-base"), line = { stroke: colour("--umup-line"), width: 1 };
    const axis = { stroke: ink, grid: line, ticks: { ...line, size: 4 }, font: "12px system-ui, sans-serif", gap: 3 };
    const whole = (plot, _, low, high) => {
      const every = (high - low) > plot.width / 26 ? 2 : 1, out = [];
      for (let at = Math.ceil((low + panel.from) / every) * every; at <= high + panel.from; at += every) out.push(at - panel.from);
      return out;
    };
    const lines = panel.curves.map((_, i) => ({
      stroke: shade(i), width: 1.75, spanGaps: true, points: { show: true, size: 5, fill: shade(i), stroke: shade(i) },
    }));
    const y = above() ? ABOVE : view().y;
    return new uPlot({
      width: panel.node.clientWidth, height: HEIGHT, padding: [8, 8, 0, 0], legend: { show: false }, series: [{}, ...lines],
      scales: { x: { time: false, range: () => range }, y: { range: () => y } },
      axes: [
        { ...axis, size: 24, label: "log₂ η", labelSize: 18, labelGap: 0, labelFont: axis.font, splits: whole,
          values: (_, at) => at.map(v => number(v + panel.from, 0)) },
        { ...axis, size: 40, space: 32, values: (_, at) => at.map(v => number(v, at[1] - at[0] < 0.1 ? 2 : 1)) },
      ],
      cursor: { y: false, sync: { key: "curves" }, drag: { x: false, y: false }, dataIdx: closest },
      hooks: { drawAxes: [plot => under(plot, panel)], draw: [plot => over(plot, panel)], setCursor: [read] },
    }, columns(panel), panel.frame);
  }

  function drag(panel) {
    const pane = panel.plot.over;
    const move = event => {
      const x = panel.plot.posToVal(event.clientX - pane.getBoundingClientRect().left, "x");
      eta.value = x;  // the control rounds to its steps and holds its ends
      tell();
    };
    pane.addEventListener("pointerdown", event => { pane.setPointerCapture(event.pointerId); move(event); });
    pane.addEventListener("pointermove", event => { if (event.buttons) move(event); });
  }

  function table(panel) {
    const node = make("table", panel.node), current = view();
    panel.caption = make("caption", node);
    panel.prices = panel.curves.flatMap((curve, i) => {
      if (!curve) return [];
      const row = make("tr", node), head = make("th", row, { scope: "row" });
      make("i", head).style.background = shade(i);
      head.append(`${current.size} ${current.values[i]}`);
      return [[make("td", row), curve]];
    });
  }

  function draw() {
    panels.forEach(panel => panel.plot.destroy());
    place.replaceChildren();
    const visible = view().panels.filter(panel => !hiddenSchemes.has(panel.name));
    const ends = view().panels.flatMap(panel => panel.curves.filter(i => i !== null)
      .flatMap(i => curves[i].points.map(p => p[0] - panel.from)));
    const range = [Math.min(...ends) - 0.3, Math.max(...ends) + 0.3], kept = eta.value;
    [eta.min, eta.max] = [Math.ceil(range[0] / STEP) * STEP, Math.floor(range[1] / STEP) * STEP].map(v => v.toFixed(2));
    eta.value = kept;
    panels = visible.map(given => {
      const node = make("div", place, { className: "curves-panel" });
      make("p", node, { className: "curves-name", textContent: given.name });
      const frame = make("div", node), reading = make("p", node, { className: "curves-read" });
      const own = given.curves.map(i => i === null ? null : curves[i]);
      const panel = { ...given, node, frame, reading, curves: own, series: own.flatMap((c, i) => c ? [i + 1] : []) };
      table(panel);
      frame.setAttribute("role", "img");
      frame.setAttribute("aria-label", `${given.name}: loss against log2 of η, one line per ${view().size}; the table below has the prices`);
      return panel;
    });
    panels.forEach(panel => { panel.plot = plotted(panel, range); drag(panel); });
    tell();
  }

  function choose() {
    shown.selectedIndex = Number(view().above);
    eta.value = 0;
    chips.replaceChildren();
    for (const { name } of view().panels) {
      const chip = make("button", chips, { type: "button", textContent: name });
      chip.setAttribute("aria-pressed", !hiddenSchemes.has(name));
      chip.addEventListener("click", () => {
        if (!hiddenSchemes.delete(name)) hiddenSchemes.add(name);
        chip.setAttribute("aria-pressed", !hiddenSchemes.has(name));
        draw();
      });
    }
    draw();
  }

  views.forEach(each => make("option", choice, { textContent: each.title }));
  choice.closest("label").hidden = views.length < 2;
  box.hidden = false;
  choice.addEventListener("change", choose);
  shown.addEventListener("change", draw);
  eta.addEventListener("input", tell);
  form.addEventListener("submit", event => event.preventDefault());
  new MutationObserver(draw).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  new ResizeObserver(() => panels.forEach(panel =>
    panel.plot.width !== panel.node.clientWidth && panel.plot.setSize({ width: panel.node.clientWidth, height: HEIGHT })
  )).observe(place);
  choose();
})();
