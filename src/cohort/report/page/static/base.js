// Elements, numbers, colours and the state that the address keeps. Texts of a run enter as text nodes only.

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C"];
const WRONG = "#D55E00", MIXED = "#56B4E9", RIGHT = "#009E73";

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") node.className = value;
    else if (key === "style") Object.assign(node.style, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && key !== "list" && !key.includes("-")) node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function fill(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function byId(id) { return document.getElementById(id); }

// 0.12345 -> "0.123", 12345.6 -> "12,346"
function short(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size >= 10000) return Math.round(value).toLocaleString("en");
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

function percent(value) { return value === null || value === undefined ? "–" : `${short(100 * value)}%`; }

function duration(seconds) {
  if (!(seconds >= 0)) return "–";
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.round(seconds) % 60];
  return h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${short(seconds)} s`;
}

function mean(values) { return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null; }

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : null;
}

// Pearson's correlation of pairs without nulls; null where one side is constant.
function correlation(xs, ys) {
  const pairs = xs.map((x, i) => [x, ys[i]]).filter(([x, y]) => x !== null && y !== null && y !== undefined);
  if (pairs.length < 3) return null;
  const [mx, my] = [mean(pairs.map((p) => p[0])), mean(pairs.map((p) => p[1]))];
  let xy = 0, xx = 0, yy = 0;
  for (const [x, y] of pairs) { xy += (x - mx) * (y - my); xx += (x - mx) ** 2; yy += (y - my) ** 2; }
  return xx > 0 && yy > 0 ? xy / Math.sqrt(xx * yy) : null;
}

function distinct(values) { return [...new Set(values)]; }

// The largest of many numbers: Math.max(...values) overflows the stack at 100,000.
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value !== null && value !== undefined) { low = Math.min(low, value); high = Math.max(high, value); }
  return low <= high ? [low, high] : [0, 1];
}

function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

const state = { run: 0, view: "overview", step: null, group: 0, problem: null, colour: "credit" };

function readAddress() {
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    if (key in state) state[key] = key === "view" || key === "colour" ? value : Number(value);
  }
}

function writeAddress() {
  const kept = Object.entries(state).filter(([, value]) => value !== null).map(([key, value]) => [key, String(value)]);
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}

function theme(next) {
  if (next) document.documentElement.dataset.theme = next;
  const dark = document.documentElement.dataset.theme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  return dark ? "dark" : "light";
}

function panel(title, note, ...children) {
  return el("section", { class: "panel" }, el("h2", {}, title), note ? el("p", { class: "note" }, note) : null, children);
}

// A labelled select: options are [value, label] pairs.
function choice(label, options, value, onchange) {
  const select = el("select", { "aria-label": label, onchange: () => onchange(select.value) },
    options.map(([v, text]) => el("option", { value: v, selected: String(v) === String(value) }, text)));
  return el("label", { class: "field" }, label, select);
}

// A slider over the entries of `values`.
function slider(label, values, value, oninput) {
  const at = Math.max(0, values.indexOf(value));
  const shown = el("output", {}, String(values[at]));
  const input = el("input", { type: "range", min: 0, max: values.length - 1, step: 1, "aria-valuetext": `${label} ${values[at]}` });
  input.value = String(at);
  input.addEventListener("input", () => {
    const next = values[Number(input.value)];
    shown.textContent = String(next);
    input.setAttribute("aria-valuetext", `${label} ${next}`);
    oninput(next);
  });
  return el("label", { class: "field slider" }, label, input, shown);
}

function download(name, text) {
  const link = el("a", { download: name, href: URL.createObjectURL(new Blob([text], { type: "application/jsonl" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
