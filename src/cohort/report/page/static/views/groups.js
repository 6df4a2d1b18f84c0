// One whole group: its completions side by side by advantage, tokens coloured, what each reward read, rewards of steps.

VIEWS.groups = {
  name: "Groups",
  has: (run) => run.groups.length,
  build: (run) => {
    const steps = distinct(run.groups.map((group) => group.step));
    if (!steps.includes(state.step)) state.step = steps.at(-1);
    const body = el("div", { class: "group" });
    const bar = el("form", { class: "filters", onsubmit: (event) => event.preventDefault() });
    const draw = () => { writeAddress(); fill(body, groupBody(run, groupAt(run))); };
    fill(bar, slider("step", steps, state.step, (step) => { state.step = step; state.group = 0; drawBar(); draw(); }), el("span", { class: "more" }));
    const drawBar = () => fill(bar.lastChild, groupChoices(run, draw));
    drawBar();
    fill(body, groupBody(run, groupAt(run)));
    return [bar, body];
  },
  update: () => {}, // a group that is being read stays; the next visit has the new steps
};

const PAINTS = {
  credit: ["advantage × change", (c, t) => (c.changes ? advantage(c, t) * c.changes[t] : null)],
  entropy: ["entropy", (c, t) => (c.entropies ? c.entropies[t] : null)],
  ratio: ["log ratio after the update", (c, t) => (c.changes ? c.changes[t] : null)],
  logprob: ["log-probability", (c, t) => (c.logprobs ? c.logprobs[t] : null)],
  reference: ["policy against reference", (c, t) => (c.reference_logprobs && c.logprobs ? c.logprobs[t] - c.reference_logprobs[t] : null)],
  advantage: ["advantage", (c, t) => advantage(c, t)],
};

function advantage(completion, t) {
  return Array.isArray(completion.advantages) ? completion.advantages[t] ?? 0 : completion.advantages ?? 0;
}

function meanAdvantage(completion) {
  return Array.isArray(completion.advantages) ? mean(completion.advantages) ?? 0 : completion.advantages ?? 0;
}

function groupAt(run) {
  const here = run.groups.filter((group) => group.step === state.step);
  return here[Math.min(state.group, here.length - 1)] || run.groups.at(-1);
}

function tokensOf(completion) { return Array.isArray(completion.tokens) ? completion.tokens : []; }

function groupChoices(run, draw) {
  const here = run.groups.filter((group) => group.step === state.step), group = groupAt(run);
  const known = Object.entries(PAINTS).filter(([, [, value]]) => group.completions.some((c) => tokensOf(c).some((_, t) => typeof value(c, t) === "number")));
  if (!known.some(([key]) => key === state.colour)) state.colour = known.length ? known[0][0] : "none";
  return [
    here.length > 1 ? choice("group", here.map((each, i) => [i, `${each.group} (row ${each.row ?? "?"})`]), state.group, (value) => { state.group = Number(value); draw(); }) : null,
    known.length ? choice("colour tokens by", [...known.map(([key, [name]]) => [key, name]), ["none", "nothing"]], state.colour, (value) => { state.colour = value; draw(); }) : null,
  ];
}

function groupBody(run, group) {
  const order = [...group.completions].sort((a, b) => meanAdvantage(b) - meanAdvantage(a));
  const names = distinct(order.flatMap((c) => Object.keys(c.spans || {})));
  const scale = paintScale(group);
  return [
    el("h2", {}, `Step ${group.step}, group ${group.group ?? 0}${group.row === undefined || group.row === null ? "" : `, row ${group.row}`}`),
    promptBlock(group.prompt), fields("Columns of the row", group.columns),
    legendOf(names, scale),
    el("div", { class: "cards" }, order.map((completion) => card(completion, names, scale))),
  ];
}

// The largest size of the values that colour the group's tokens, and whether they have signs.
function paintScale(group) {
  const paint = PAINTS[state.colour];
  if (!paint) return null;
  const values = group.completions.flatMap((c) => tokensOf(c).map((_, t) => paint[1](c, t))).filter((v) => typeof v === "number");
  const sizes = values.map(Math.abs).sort((a, b) => a - b);
  const large = sizes[Math.floor(sizes.length * 0.98)] || sizes.at(-1) || 0;
  return { name: paint[0], value: paint[1], size: large || 1, signed: values.some((v) => v < 0) && values.some((v) => v > 0) };
}

function shade(scale, value) {
  if (typeof value !== "number") return null;
  const strength = Math.min(1, Math.abs(value) / scale.size);
  if (strength < 0.04) return null;
  const base = scale.signed ? (value > 0 ? "0, 114, 178" : "213, 94, 0") : "230, 159, 0";
  return `rgba(${base}, ${(0.7 * strength).toFixed(3)})`;
}

function legendOf(names, scale) {
  const box = (colour, text) => el("span", { class: "key" }, el("i", { style: { background: colour } }), text);
  return el("p", { class: "legend" },
    scale ? (scale.signed ? [box("rgba(0, 114, 178, .55)", `${scale.name} above 0 (to ${short(scale.size)})`), box("rgba(213, 94, 0, .55)", "below 0")] : [box("rgba(230, 159, 0, .55)", `${scale.name}, to ${short(scale.size)}`)]) : null,
    names.map((name, i) => el("span", { class: "key" }, el("u", { class: `span${i % 4}` }, "read by"), ` ${name}`)));
}

function card(completion, names, scale) {
  const value = meanAdvantage(completion);
  const components = Object.entries(completion.components || {}).map(([name, score]) => el("span", { class: "chip" }, `${name} ${short(score)}`));
  return el("article", { class: `card ${value > 0 ? "up" : value < 0 ? "down" : ""}` },
    el("header", {}, el("b", {}, `${value > 0 ? "▲" : value < 0 ? "▼" : "="} ${short(value)}`), el("span", { class: "chip" }, `reward ${short(completion.reward)}`), components,
      el("span", { class: "at" }, `#${completion.index ?? "?"} · ${tokensOf(completion).length || "?"} tokens${completion.truncated ? ", cut off" : ""}`)),
    el("div", { class: "text" }, pieces(completion, names, scale)));
}

// The text cut at the ends of tokens, of spans and of steps; where the tokens do not join to the text, the tokens alone.
function pieces(completion, names, scale) {
  const tokens = tokensOf(completion), text = completion.text ?? tokens.join("");
  const fits = tokens.length && tokens.join("") === text;
  if (tokens.length && !fits && scale) return tokens.map((token, t) => tokenPiece(token, completion, t, scale, ""));
  const ends = [];
  if (fits) tokens.reduce((at, token) => { ends.push(at + token.length); return at + token.length; }, 0);
  const place = units(text);
  const spans = names.map((name) => [name, (completion.spans || {})[name]]).filter(([, span]) => Array.isArray(span)).map(([name, span]) => [name, span.map(place)]);
  const steps = (completion.steps || []).map((step) => ({ ...step, end: place(step.end) }));
  const cuts = distinct([0, text.length, ...ends, ...spans.flatMap(([, span]) => span), ...steps.map((step) => step.end)]).filter((cut) => cut >= 0 && cut <= text.length).sort((a, b) => a - b);
  const nodes = [];
  for (let k = 0, t = 0; k + 1 < cuts.length; k++) {
    while (fits && ends[t] <= cuts[k]) t++;
    const read = spans.filter(([, [start, end]]) => start <= cuts[k] && cuts[k] < end).map(([name]) => `span${names.indexOf(name) % 4}`);
    nodes.push(tokenPiece(text.slice(cuts[k], cuts[k + 1]), completion, fits ? t : null, scale, read.join(" ")));
    steps.filter((step) => step.end === cuts[k + 1]).forEach((step) => nodes.push(el("sup", { class: step.reward > 0 ? "good" : "poor" }, short(step.reward))));
  }
  // The end token has no text.
  if (fits && tokens.at(-1) === "") nodes.push(tokenPiece("∎", completion, tokens.length - 1, scale, ""));
  return nodes;
}

// From a place in characters, as the files have it, to one in the units of 16 bits of this language.
function units(text) {
  if (!/[\ud800-\udfff]/.test(text)) return (at) => at;
  const places = [0];
  for (const character of text) places.push(places.at(-1) + character.length);
  return (at) => places[Math.min(at, places.length - 1)];
}

function tokenPiece(text, completion, t, scale, read) {
  const value = scale && t !== null ? scale.value(completion, t) : null;
  const colour = scale ? shade(scale, value) : null;
  if (!colour && !read && value === null) return text;
  return el("span", { class: read, title: typeof value === "number" ? `${scale.name} ${short(value)}` : "", style: colour ? { backgroundColor: colour } : {} }, text);
}
