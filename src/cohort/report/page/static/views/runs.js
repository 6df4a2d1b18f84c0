// Several runs: their verdicts, what their configurations differ in, curves over each other, one prompt side by side.

let compared = null, pair = [0, 1], sameProblem = 0;

VIEWS.runs = {
  name: "Runs",
  has: () => model.runs.length > 1,
  build: () => [verdictTable(), curvesPanel(), configPanel(), samePrompt()],
};

function verdictTable() {
  return panel("Runs", null, el("div", { class: "tall", tabIndex: 0, role: "group", "aria-label": "Runs" }, table2(["run", "what came of it", "trend", "warnings"], model.runs.map((run) => [run.name, run.summary.headline, run.summary.lines[0] || "", String(run.summary.causes.length)]))));
}

// Runs that differ in seed and folder alone are seeds of one setting.
function families() {
  const key = (run) => JSON.stringify(Object.entries(run.config).filter(([name]) => !/(^|\.)(seed|output_dir|start.*|run_name|hub_model_id|resume_from_checkpoint)$/.test(name)).sort());
  const found = new Map();
  // A comparison's settings do not name the method: the folder does.
  const method = (run) => run.config.method ?? run.name.split("/").at(-1);
  model.runs.forEach((run) => {
    const name = Object.keys(run.config).length ? method(run) + key(run) : `alone ${run.number}`;
    found.set(name, [...(found.get(name) || []), run]);
  });
  return [...found.values()];
}

function familyName(runs) {
  const method = runs[0].config.method;
  return runs.length === 1 ? runs[0].name : `${method || runs[0].name.split("/").at(-1)} (${runs.length} seeds)`;
}

// The mean over seeds, and the lowest and highest, at steps that all have.
function seedBand(runs, key) {
  const maps = runs.map((run) => new Map(metric(run, key)[0].map((step, i) => [step, metric(run, key)[1][i]])));
  const steps = [...maps[0].keys()].filter((step) => maps.every((map) => map.has(step))).sort((a, b) => a - b);
  const at = (reduce) => steps.map((step) => reduce(maps.map((map) => map.get(step))));
  return { points: [steps, at(mean)], band: runs.length > 1 ? { step: steps, low: at((v) => Math.min(...v)), high: at((v) => Math.max(...v)) } : null };
}

function curvesPanel() {
  const keys = distinct(model.runs.flatMap((run) => Object.keys(run.metrics))).sort();
  if (!keys.includes(compared)) compared = ["eval/accuracy", "reward", "eval/reward", "loss"].find((key) => keys.includes(key)) || keys[0];
  const holder = el("div", {});
  const draw = () => {
    const groups = families().filter((runs) => runs.some((run) => hasMetric(run, compared)));
    const parts = groups.map((runs, i) => ({ label: familyName(runs), colour: COLOURS[i % COLOURS.length], dash: i >= COLOURS.length ? [6, 4] : undefined, ...seedBand(runs.filter((run) => hasMetric(run, compared)), compared) }));
    fill(holder, chart({ title: compared, note: groups.some((runs) => runs.length > 1) ? "mean over seeds; band: lowest to highest" : "", parts, height: 300 }));
    startCharts(holder);
  };
  holder.classList.add("plot");
  holder.start = draw;
  return panel("Curves", null, el("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, choice("metric", keys.map((key) => [key, key]), compared, (value) => { compared = value; draw(); })), holder);
}

function pairChoice(draw) {
  const options = model.runs.map((run, i) => [i, run.name]);
  return [0, 1].map((k) => choice(k ? "and" : "of", options, pair[k], (value) => { pair[k] = Number(value); draw(); }));
}

function configPanel() {
  const holder = el("div", {});
  const draw = () => {
    const [a, b] = pair.map((i) => model.runs[i].config), keys = distinct([...Object.keys(a), ...Object.keys(b)]).sort();
    const cell = (value) => (value === undefined ? "not set" : typeof value === "string" ? value : JSON.stringify(value));
    const rows = keys.filter((key) => JSON.stringify(a[key]) !== JSON.stringify(b[key])).map((key) => [key, cell(a[key]), cell(b[key])]);
    fill(holder, rows.length ? el("div", { class: "diff" }, table2(["key", model.runs[pair[0]].name, model.runs[pair[1]].name], rows)) : el("p", { class: "note" }, keys.length ? "The configurations are equal." : "These runs recorded no configuration."));
  };
  draw();
  return panel("What the configurations differ in", null, el("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, pairChoice(() => { draw(); redrawSame(); })), holder);
}

let redrawSame = () => {};

// The last answers of two runs to a held-out prompt that both have.
function samePrompt() {
  const holder = el("div", {});
  redrawSame = () => {
    const tables = pair.map((i) => model.runs[i].held_out);
    const [first, second] = tables.map(lastAnswers), shared = [...first.keys()].filter((key) => second.has(key));
    if (!shared.length) { fill(holder, el("p", { class: "note" }, "These runs recorded no held-out prompt in common.")); return; }
    const at = Math.min(sameProblem, shared.length - 1), [i, j] = [first.get(shared[at]), second.get(shared[at])];
    const parts = differences(tables[0].text("completion", i) || "", tables[1].text("completion", j) || "");
    fill(holder,
      el("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, slider("prompt", shared.map((_, k) => k + 1), at + 1, (value) => { sameProblem = value - 1; redrawSame(); })),
      promptBlock(tables[0].text("prompt", i)),
      el("div", { class: "two" }, answer(tables[0], i, model.runs[pair[0]].name, marked(parts, "gone")), answer(tables[1], j, model.runs[pair[1]].name, marked(parts, "new"))));
  };
  redrawSame();
  return panel("The same prompt", "The last held-out answers, with what differs marked.", holder);
}

function lastAnswers(table) {
  const found = new Map();
  for (let i = 0; i < table.count; i++) if (!(table.sample && table.sample[i])) found.set(JSON.stringify(table.text("prompt", i)), i);
  return found;
}
