// Rows of the training data by their visits, and the band of rows that are neither never nor always solved.

const VISITS = 40;
let rowFilter = "all";
let rowSort = { key: "share", down: false };
let rowList = null;

VIEWS.prompts = {
  name: "Prompts",
  has: (run) => histories(run).size,
  build: (run) => {
    const rows = histories(run);
    rowList = new List({
      id: "prompt", label: "Rows of the training data", height: 600, sort: rowSort, columns: rowColumns(run, rows),
      onsort: (next) => { rowSort = next; showRows(rows); },
    });
    const count = (name) => [...rows.values()].filter(BANDS[name][1]).length;
    const options = Object.entries(BANDS).map(([key, [name]]) => [key, `${name} (${count(key)})`]);
    return [
      el("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
        choice("show", options, rowFilter, (value) => { rowFilter = value; showRows(rows); }),
        el("button", { type: "button", id: "export", onclick: () => exportRows(run, rows) }, "Export these rows as a data set")),
      el("p", { class: "note" }, "Each square is a visit in order: ", el("i", { class: "cell", style: { background: heat(0) } }), " none right to ", el("i", { class: "cell", style: { background: heat(1) } }), " all right; the number is the share right over all visits. An exported row has its number in the training data, and prompt and columns where the run recorded a completion of it."),
      rowList.root];
  },
  ready: (run) => showRows(histories(run)),
};

const BANDS = {
  all: ["all", () => true],
  never: ["never solved", (h) => h.share === 0],
  band: ["20% to 80% right", (h) => h.share >= 0.2 && h.share <= 0.8],
  always: ["always solved", (h) => h.share === 1],
};

// row -> {row, visits: [{step, share}], share, change}
function histories(run) {
  const rows = new Map(), { step, row, n, right, mean: means } = run.rows;
  for (let i = 0; i < row.length; i++) {
    if (row[i] === null || (right[i] === null && means[i] === null)) continue;
    const of = rows.get(row[i]) || { row: row[i], visits: [], right: 0, n: 0 };
    const share = right[i] !== null && n[i] ? right[i] / n[i] : means[i];
    of.visits.push({ step: step[i], share });
    of.right += right[i] ?? (share ?? 0) * (n[i] || 1);
    of.n += n[i] || 1;
    rows.set(row[i], of);
  }
  for (const of of rows.values()) {
    of.share = of.n ? of.right / of.n : 0;
    of.change = of.visits.at(-1).share - of.visits[0].share;
  }
  return rows;
}

// From vermilion over grey to blue, which all readers tell apart.
function heat(share) {
  const mix = (a, b, t) => a.map((x, i) => Math.round(x + (b[i] - x) * t));
  const [low, middle, high] = [[213, 94, 0], [222, 222, 214], [0, 114, 178]];
  const t = Math.min(1, Math.max(0, share ?? 0));
  return `rgb(${(t < 0.5 ? mix(low, middle, 2 * t) : mix(middle, high, 2 * t - 1)).join(",")})`;
}

function rowColumns(run, rows) {
  const number = (key, name, cell) => ({ key, name, width: "70px", kind: "number", cell: (row) => cell(rows.get(row)) });
  return [
    number("row", "row", (h) => String(h.row)), number("visits", "visits", (h) => String(h.visits.length)), number("share", "right", (h) => percent(h.share)), { ...number("change", "change", (h) => (h.visits.length > 1 ? percent(h.change) : "–")), width: "78px" },
    { key: "cells", name: "visits in order", sort: false, width: "minmax(0, 440px)", kind: "cells", cell: (row) => el("span", { class: "cells" }, rows.get(row).visits.slice(-VISITS).map((visit) => el("i", { class: "cell", title: `step ${visit.step}: ${percent(visit.share)} right`, style: { background: heat(visit.share) } }))) },
    { key: "prompt", name: "prompt", sort: false, cell: (row) => String(run.rows.prompts[row] ?? "") },
  ];
}

function shownRows(rows) { return [...rows.values()].filter(BANDS[rowFilter][1]); }

function showRows(rows) {
  const value = { row: (h) => h.row, visits: (h) => h.visits.length, share: (h) => h.share, change: (h) => h.change }[rowSort.key];
  const sign = rowSort.down ? -1 : 1;
  rowList.show(shownRows(rows).sort((a, b) => sign * (value(a) - value(b)) || a.row - b.row).map((h) => h.row));
}

// JSON Lines: prompt and columns as the run recorded them; where it recorded none, the beginning of the prompt.
function exportRows(run, rows) {
  const whole = new Map(), table = run.completions;
  if (table.row) for (let i = 0; i < table.count; i++) if (!whole.has(table.row[i])) whole.set(table.row[i], [table.text("prompt", i), table.text("columns", i)]);
  run.groups.forEach((group) => whole.set(group.row, [group.prompt, group.columns]));
  const lines = shownRows(rows).map((h) => {
    const [prompt, columns] = whole.get(h.row) || [null, null];
    const known = prompt === null ? { prompt_begins: run.rows.prompts[h.row] ?? "" } : { prompt, ...columns };
    return JSON.stringify({ row: h.row, ...known, share_right: Number(h.share.toFixed(4)), visits: h.visits.length });
  });
  download(`rows-${rowFilter}.jsonl`, `${lines.join("\n")}\n`);
}
