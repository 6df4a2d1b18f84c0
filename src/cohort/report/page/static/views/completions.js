// All recorded completions: search, filters, sorting, and the one that is picked.

const filters = { source: "completions", text: "", from: null, to: null, key: "reward", low: null, high: null, short: null, long: null, cut: "", why: "" };
let sorting = { key: "step", down: true };
let completionList = null;
let wanted = null; // a completion that another view asks for

VIEWS.completions = {
  name: "Completions",
  has: (run) => run.completions.count || run.held_out.count,
  build: (run) => {
    if (!run[filters.source].count) filters.source = run.completions.count ? "completions" : "held_out";
    const detail = el("article", { class: "detail", "aria-live": "polite" }, el("p", { class: "note" }, "Pick a completion: click, or arrow keys in the list."));
    const count = el("p", { class: "count", role: "status" });
    completionList = makeList(run, detail, count);
    return [filterBar(run), count, el("div", { class: "split" }, completionList.root, detail)];
  },
  ready: (run) => refilter(run),
  update: (run) => refilter(run),
};

function makeList(run, detail, count) {
  const table = run[filters.source];
  const list = new List({
    id: "completion", label: "Completions", columns: completionColumns(table), sort: sorting, height: 560,
    onsort: (next) => { sorting = next; refilter(run); },
    onpick: (i) => fill(detail, completionDetail(run, table, i)),
  });
  list.counter = count;
  return list;
}

function completionColumns(table) {
  const number = (key, name) => ({ key, name, width: "64px", kind: "number", cell: (i) => short(table.number(key, i)) });
  const columns = [number("step", "step")];
  if (table.row) columns.push(number("row", "row"));
  if (table.problem) columns.push(number("problem", "problem"));
  if (table.reward) columns.push(number("reward", "reward"));
  table.names().slice(0, 3).forEach((name) => columns.push({ ...number(`score:${name}`, name), width: "78px" }));
  columns.push({ ...number("tokens", "tokens"), cell: (i) => `${short(table.number("tokens", i))}${table.truncated[i] ? " ✂" : ""}` });
  columns.push({ key: "completion", name: "text", cell: (i) => (table.text("completion", i) || "").slice(0, 200).replace(/\s+/g, " ") });
  return columns;
}

function filterBar(run) {
  const table = run[filters.source];
  const change = (key, parse = (v) => v) => (value) => { filters[key] = parse(value); refilter(run); };
  const numeric = (label, key) => el("label", { class: "field" }, label, el("input", { type: "number", step: "any", value: filters[key] ?? "", oninput: (event) => change(key, (v) => (v === "" ? null : Number(v)))(event.target.value) }));
  const keys = [["reward", "reward"], ["advantage", "advantage"], ...table.names().map((name) => [`score:${name}`, name])];
  const whys = table.why ? distinct(table.why).filter((n) => n !== null).map((n) => table.texts[n]) : [];
  const sources = [["completions", "training"], ["held_out", "held out"]].filter(([name]) => run[name].count);
  return el("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
    sources.length > 1 ? choice("of", sources, filters.source, (value) => { filters.source = value; show(); }) : null,
    el("label", { class: "field search" }, "text", el("input", { type: "search", id: "search", placeholder: "in prompt or completion  ( / )", value: filters.text, oninput: (event) => change("text")(event.target.value) })),
    numeric("steps from", "from"), numeric("to", "to"),
    choice("score", keys, filters.key, change("key")), numeric("at least", "low"), numeric("at most", "high"),
    numeric("tokens from", "short"), numeric("to", "long"),
    choice("cut off", [["", "any"], ["1", "yes"], ["0", "no"]], filters.cut, change("cut")),
    whys.length > 1 ? choice("why kept", [["", "any"], ...whys.map((why) => [why, why])], filters.why, change("why")) : null);
}

function within(value, low, high) {
  if (low === null && high === null) return true;
  return value !== null && (low === null || value >= low) && (high === null || value <= high);
}

function kept(table) {
  const needle = filters.text.toLowerCase(), order = [];
  for (let i = 0; i < table.count; i++) {
    if (!within(table.number("step", i), filters.from, filters.to)) continue;
    if (!within(table.number(filters.key, i), filters.low, filters.high)) continue;
    if (!within(table.number("tokens", i), filters.short, filters.long)) continue;
    if (filters.cut !== "" && table.truncated[i] !== Number(filters.cut)) continue;
    if (filters.why && table.text("why", i) !== filters.why) continue;
    if (needle && !table.matches(i, needle)) continue;
    order.push(i);
  }
  return order;
}

function sorted(table, order) {
  const sign = sorting.down ? -1 : 1;
  if (sorting.key === "completion") return order.sort((a, b) => sign * (table.text("completion", a) < table.text("completion", b) ? -1 : 1) || a - b);
  const keys = Float64Array.from({ length: table.count }, (_, i) => table.number(sorting.key, i) ?? -Infinity);
  return order.sort((a, b) => (keys[a] < keys[b] ? -sign : keys[a] > keys[b] ? sign : a - b));
}

function refilter(run) {
  const table = run[filters.source];
  if (!completionList) return;
  completionList.show(sorted(table, kept(table)));
  completionList.counter.textContent = `${completionList.order.length.toLocaleString("en")} of ${table.count.toLocaleString("en")} recorded completions`;
  if (wanted !== null) { const at = completionList.order.indexOf(wanted); wanted = null; completionList.pick(at); }
  else if (completionList.picked < 0) completionList.pick(0);
}

// Opens one completion from another view.
function openCompletion(i) {
  Object.assign(filters, { source: "completions", text: "", from: null, to: null, low: null, high: null, short: null, long: null, cut: "", why: "" });
  wanted = i;
  go("completions");
}

function completionDetail(run, table, i) {
  const facts = [["step", short(table.number("step", i))], ["row", table.number("row", i)], ["reward", short(table.number("reward", i))], ["advantage", table.advantage ? short(table.number("advantage", i)) : null],
    ...table.names().map((name) => [name, short(table.number(`score:${name}`, i))]), ["tokens", `${short(table.number("tokens", i))}${table.truncated[i] ? ", cut off" : ""}`], ["kept as", table.text("why", i)]];
  return [
    el("dl", { class: "facts" }, facts.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value))))),
    promptBlock(table.text("prompt", i)),
    el("h3", {}, "Completion"), el("div", { class: "text answer" }, table.text("completion", i) || ""),
    fields("Columns of the row", table.text("columns", i)), fields("Logged by the rewards", table.text("extra", i)),
    table.text("step_rewards", i) ? fields("Step rewards", { steps: table.text("step_rewards", i) }) : null,
  ];
}

function fields(title, values) {
  if (!values || typeof values !== "object" || !Object.keys(values).length) return null;
  return [el("h3", {}, title), el("dl", { class: "columns" }, Object.entries(values).map(([key, value]) =>
    el("div", {}, el("dt", {}, key), el("dd", {}, typeof value === "string" ? value : JSON.stringify(value)))))];
}
