// The page's data: packed blocks to runs with tables, and rows that a live run adds.

const ONE_VALUE = ["step", "row", "group", "index", "problem", "sample", "tokens", "reward", "advantage"];
const TEXT_KEYS = ["prompt", "completion", "why", "columns", "extra", "step_rewards"];
const model = { live: false, runs: [] };

async function unpack(name) {
  const node = byId(`block-${name}`);
  if (!node) return null;
  const coded = atob(node.textContent.trim());
  const bytes = new Uint8Array(coded.length);
  for (let i = 0; i < coded.length; i++) bytes[i] = coded.charCodeAt(i);
  node.remove();
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// Completions in columns; texts are kept once, as numbers of entries of `texts`.
class Table {
  constructor(data) {
    Object.assign(this, { count: 0, texts: [], scores: {}, truncated: [] }, data);
    this.lower = new Map();
    this.numbers = null;
  }

  text(key, i) {
    const number = this[key] ? this[key][i] : null;
    return number === null || number === undefined ? null : this.texts[number];
  }

  // A number of a completion by a key such as "reward", or "score:accuracy".
  number(key, i) {
    const column = key.startsWith("score:") ? this.scores[key.slice(6)] : this[key];
    const value = column ? column[i] : null;
    return value === undefined ? null : value;
  }

  names() { return Object.keys(this.scores); }

  matches(i, needle) {
    return this.found(this.completion[i], needle) || this.found(this.prompt ? this.prompt[i] : null, needle);
  }

  found(number, needle) {
    if (number === null || number === undefined) return false;
    if (!this.lower.has(number)) {
      const value = this.texts[number];
      this.lower.set(number, (typeof value === "string" ? value : promptText(value)).toLowerCase());
    }
    return this.lower.get(number).includes(needle);
  }

  add(row) {
    const i = this.count++;
    const put = (holder, key, value) => { (holder[key] = holder[key] || Array(i).fill(null))[i] = value; };
    for (const key of ONE_VALUE) if (key in row || this[key]) put(this, key, row[key] ?? null);
    for (const key of TEXT_KEYS) if (key in row || this[key]) put(this, key, key in row ? this.numberOf(row[key]) : null);
    this.truncated[i] = row.truncated ? 1 : 0;
    for (const [key, value] of Object.entries(row)) {
      if (ONE_VALUE.includes(key) || TEXT_KEYS.includes(key) || key === "truncated") continue;
      if (value === null || typeof value === "number") put(this.scores, key, value);
    }
    for (const name of this.names()) if (this.scores[name].length <= i) this.scores[name][i] = null;
  }

  numberOf(value) {
    if (!this.numbers) this.numbers = new Map(this.texts.map((text, i) => [JSON.stringify(text), i]));
    const key = JSON.stringify(value);
    if (!this.numbers.has(key)) { this.numbers.set(key, this.texts.length); this.texts.push(value); }
    return this.numbers.get(key);
  }
}

function makeRun(data, number) {
  return { ...data, number, completions: new Table({}), held_out: new Table({}), groups: [] };
}

async function loadHead() {
  const head = await unpack("head");
  model.live = head.live;
  model.runs = head.runs.map(makeRun);
}

async function loadTexts() {
  for (const run of model.runs) {
    for (const name of ["completions", "held_out"]) {
      const data = await unpack(`${name}-${run.number}`);
      if (data) run[name] = new Table(data);
    }
    run.groups = (await unpack(`groups-${run.number}`)) || [];
  }
}

// Points of a metric: [steps, values]; empty where the run has none.
function metric(run, key) { return run.metrics[key] || [[], []]; }

function hasMetric(run, key) { return metric(run, key)[0].length > 0; }

function lastOf(run, key) { return metric(run, key)[1].at(-1) ?? null; }

function metricKeys(run, start, end = "") {
  return Object.keys(run.metrics).filter((key) => key.startsWith(start) && key.endsWith(end));
}

function lastStep(run) { return Math.max(0, ...Object.values(run.metrics).map(([steps]) => steps.at(-1) || 0)); }

// The last user turn of a prompt, which is a text or a list of messages.
function promptText(prompt) {
  if (prompt === null || prompt === undefined) return "";
  if (typeof prompt === "string") return prompt;
  if (!Array.isArray(prompt)) return JSON.stringify(prompt);
  const users = prompt.filter((message) => message && message.role === "user");
  const last = users.at(-1) || prompt.at(-1);
  return last ? contentText(last.content) : "";
}

function contentText(content) {
  if (typeof content === "string") return content;
  return Array.isArray(content) ? content.map((part) => (part && part.text) || "").join("") : JSON.stringify(content ?? "");
}

function promptBlock(prompt) {
  const turns = Array.isArray(prompt) ? prompt : [{ role: "prompt", content: prompt ?? "" }];
  return el("div", { class: "prompt" }, turns.map((turn) => el("div", { class: "turn" },
    el("span", { class: "role" }, String((turn && turn.role) || "")), el("div", { class: "text" }, contentText(turn && turn.content)))));
}

// Rows that a live run has written since.
function append(run, file, rows) {
  if (file === "metrics") rows.forEach((row) => addMetrics(run, row));
  else if (file === "completions" || file === "held_out") rows.forEach((row) => run[file].add(row));
  else if (file === "groups") run.groups.push(...rows);
  else if (file === "rows") rows.forEach((row) => addHistory(run.rows, row));
}

function addMetrics(run, row) {
  for (const [key, value] of Object.entries(row)) {
    if (key === "step" || typeof value !== "number" || !Number.isFinite(value)) continue;
    const [steps, values] = run.metrics[key] = run.metrics[key] || [[], []];
    if (steps.at(-1) === row.step) values[values.length - 1] = value;
    else { steps.push(row.step); values.push(value); }
  }
}

function addHistory(history, row) {
  for (const key of ["step", "row", "n", "right", "mean"]) history[key].push(row[key] ?? null);
  const known = Array.isArray(row.rewards) && row.rewards.length;
  history.flat.push(known ? Number(distinct(row.rewards).length === 1) : null);
  if ("prompt" in row && !(row.row in history.prompts)) history.prompts[row.row] = row.prompt;
}
