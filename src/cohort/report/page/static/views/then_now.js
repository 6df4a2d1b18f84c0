// One held-out prompt across the evaluations, with what changed since the first marked.

VIEWS.then_now = {
  name: "Then and now",
  has: (run) => run.held_out.count && distinct(run.held_out.step).length > 0,
  build: (run) => {
    const table = run.held_out, problems = distinct(table.problem || []);
    if (!problems.includes(state.problem)) state.problem = problemOrder(run)[0] ?? 0;
    const body = el("div", {});
    const steps = distinct(table.step).sort((a, b) => a - b);
    if (!steps.includes(state.step)) state.step = steps.at(-1);
    const draw = () => { writeAddress(); fill(body, thenNow(run, steps)); };
    const list = problemList(run, problems, draw);
    fill(body, thenNow(run, steps));
    const bar = el("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, slider("evaluation at step", steps, state.step, (step) => { state.step = step; draw(); }));
    problemRows = list;
    return [bar, el("div", { class: "split narrow" }, list.root, body)];
  },
  ready: (run) => { if (problemRows) problemRows.show(problemOrder(run)); },
  update: () => {},
};

let problemRows = null;
let problemSort = { key: "change", down: false };

function scoreKey(table) { return table.names().includes("accuracy") ? "score:accuracy" : "reward"; }

// problem -> [score at its first evaluation, at its last]
function problemEnds(table) {
  const key = scoreKey(table), ends = new Map();
  for (let i = 0; i < table.count; i++) {
    const score = table.number(key, i), problem = table.problem[i];
    if (!ends.has(problem)) ends.set(problem, [score, score, i]);
    else ends.get(problem)[1] = score;
  }
  return ends;
}

function problemList(run, problems, draw) {
  const table = run.held_out, ends = problemEnds(table);
  const list = new List({
    id: "problem", label: "Held-out problems", height: 560, sort: problemSort,
    onsort: (next) => { problemSort = next; list.show(problemOrder(run)); },
    onpick: (problem) => { state.problem = problem; draw(); },
    columns: [
      { key: "change", name: "first → last", width: "96px", kind: "number", cell: (p) => `${short(ends.get(p)[0])} → ${short(ends.get(p)[1])}` },
      { key: "prompt", name: "prompt", sort: false, cell: (p) => promptText(table.text("prompt", ends.get(p)[2])).slice(0, 160) },
    ],
  });
  list.picked = state.problem;
  return list;
}

function problemOrder(run) {
  const ends = problemEnds(run.held_out), sign = problemSort.down ? 1 : -1;
  const change = (p) => (ends.get(p)[1] ?? 0) - (ends.get(p)[0] ?? 0);
  return [...ends.keys()].sort((a, b) => sign * (change(a) - change(b)) || a - b);
}

function answersTo(table, problem) {
  const found = [];
  for (let i = 0; i < table.count; i++) if (table.problem[i] === problem && !(table.sample && table.sample[i])) found.push(i);
  return found;
}

function thenNow(run) {
  const table = run.held_out, found = answersTo(table, state.problem);
  if (!found.length) return el("p", { class: "note" }, "no completion of this problem");
  const first = found[0], now = found.findLast((i) => table.step[i] <= state.step) ?? first;
  const parts = differences(table.text("completion", first) || "", table.text("completion", now) || "");
  return [
    promptBlock(table.text("prompt", first)), fields("Columns of the row", table.text("columns", first)),
    el("p", { class: "strip" }, "score at each evaluation: ", found.map((i) => el("span", { class: `chip ${i === now ? "here" : ""}` }, `${table.step[i]}: ${short(table.number(scoreKey(table), i))}`))),
    el("div", { class: "two" }, answer(table, first, "Then", marked(parts, "gone")), answer(table, now, "Now", marked(parts, "new"))),
  ];
}

function answer(table, i, word, text) {
  return el("article", { class: "card" }, el("header", {}, el("b", {}, `${word}: step ${table.step[i]}`), el("span", { class: "chip" }, `reward ${short(table.number("reward", i))}`),
    table.names().map((name) => el("span", { class: "chip" }, `${name} ${short(table.number(`score:${name}`, i))}`)), el("span", { class: "at" }, `${short(table.number("tokens", i))} tokens${table.truncated[i] ? ", cut off" : ""}`)), text);
}
