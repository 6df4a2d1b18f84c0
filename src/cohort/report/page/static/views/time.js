// Where the time goes, and when the run is done.

VIEWS.time = {
  name: "Time",
  has: (run) => hasMetric(run, "seconds/step"),
  build: (run) => [timeLeft(run), el("section", { class: "grid two-wide" }, timeCharts(run)), phaseTable(run)],
};

const PHASES = ["generate", "reward", "greedy", "reference", "update"];

function timeLeft(run) {
  const [steps, seconds] = metric(run, "seconds/step"), total = run.ended.max_steps ?? run.config.max_steps;
  const recent = median(seconds.slice(-20)), done = steps.at(-1), evaluation = metric(run, "seconds/eval")[1];
  const left = total > 0 && !run.ended.by ? Math.max(0, total - done) * recent : null;
  const spent = seconds.reduce((a, b) => a + b, 0), evaluated = evaluation.reduce((a, b) => a + b, 0);
  const facts = [["steps", total > 0 ? `${done} of ${total}` : String(done)], ["a step", `${duration(recent)}`], ["steps took", duration(spent)], ["evaluations took", duration(evaluated)],
    ["tokens a second", short(median(metric(run, "tokens_per_second")[1].slice(-20)))], [run.ended.by ? "ended by" : "time left", run.ended.by ? String(run.ended.by) : left === null ? "–" : duration(left)]];
  return el("dl", { class: "facts large" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

// [name, points] of the phases of a step, and what of it they leave.
function phases(run) {
  const known = PHASES.filter((name) => hasMetric(run, `seconds/${name}`)).map((name) => [name, metric(run, `seconds/${name}`)]);
  const [steps, seconds] = metric(run, "seconds/step");
  const sums = new Map();
  known.forEach(([, [at, values]]) => at.forEach((step, i) => sums.set(step, (sums.get(step) || 0) + values[i])));
  return [...known, ["other", [steps, seconds.map((value, i) => Math.max(0, value - (sums.get(steps[i]) || 0)))]]];
}

function timeCharts(run) {
  const x = span(run);
  return [
    chart({ title: "Seconds of a step", stack: true, zero: true, height: 230, x, parts: phases(run).map(([name, points], i) => ({ label: name, points, colour: COLOURS[i % COLOURS.length] })) }),
    chart({ title: "Tokens a second", zero: true, height: 230, x, parts: [{ label: "tokens/s", points: metric(run, "tokens_per_second") }] }),
  ];
}

function phaseTable(run) {
  const all = phases(run), sum = (values) => values.reduce((a, b) => a + b, 0), total = sum(all.map(([, [, values]]) => sum(values)));
  const functions = metricKeys(run, "seconds/reward/").map((key) => [`reward ${key.slice(15)}`, duration(sum(metric(run, key)[1])), "–"]);
  return panel("Sums", null, table2(["phase", "time", "share"], [...all.map(([name, [, values]]) => [name, duration(sum(values)), percent(sum(values) / (total || 1))]), ...functions]));
}
