// Carries η from a proxy to a target by the motions that studies measured: `umup.transfer.carry` in JavaScript,
// compared with the Python one by a test. An interval is [value, low, high]; null is an end that is not bounded.
const transfer = (() => {
  "use strict";
  const AXES = ["width", "depth", "seq_len", "batch", "steps"];

  const bounded = ([value, low, high]) => [value, low ?? -Infinity, high ?? Infinity];
  const plus = ([a, aLow, aHigh], [b, bLow, bHigh]) => {
    const value = a + b;
    return [value, value - Math.hypot(a - aLow, b - bLow), value + Math.hypot(aHigh - a, bHigh - b)];
  };
  const times = (n, [value, low, high]) => n < 0 ? [n * value, n * high, n * low] : [n * value, n * low, n * high];

  // CompleteP is μP but over depth.
  const motion = (motions, scheme, axis) => {
    const of = name => motions.find(one => one.scheme === name && one.axis === axis);
    return of(scheme) || (scheme === "completep" && axis !== "depth" ? of("mup") : undefined) || null;
  };

  // The batch counts in tokens: it is sequences here.
  const size = (run, axis) => axis === "batch" ? run.batch * run.seq_len : run[axis];
  const toWsd = run => Number(run.schedule.startsWith("wsd"));

  const term = (motions, scheme, axis, doublings) => {
    const measured = motion(motions, scheme, axis);
    if (!measured)
      return {axis, doublings, octaves: [0, -Infinity, Infinity], beyond: Math.abs(doublings), motion: null};
    const octaves = times(doublings, bounded(measured.octaves));
    return {axis, doublings, octaves, beyond: Math.max(0, Math.abs(doublings) - measured.doublings), motion: measured};
  };

  const carry = (motions, scheme, proxy, target, eta) => {
    const grown = AXES.map(axis => [axis, Math.log2(size(target, axis) / size(proxy, axis))]);
    grown.push(["schedule", toWsd(target) - toWsd(proxy)]);
    const terms = grown.filter(([, n]) => n !== 0).map(([axis, n]) => term(motions, scheme, axis, n));
    const left = motion(motions, scheme, "together");
    if (terms.length > 1 && left) {
      const [, low, high] = bounded(left.octaves);
      const most = Math.max(Math.abs(low), Math.abs(high));
      terms.push({axis: "together", doublings: 0, octaves: [0, -most, most], beyond: 0, motion: left});
    }
    return {eta: terms.reduce((found, one) => plus(found, one.octaves), eta), terms};
  };

  return {carry};
})();
