// Whether the reward is gamed: components against each other and length, gold against proxy, the strangest completions.

let across = "tokens", up = null;

VIEWS.reward = {
  name: "Reward",
  has: (run) => hasMetric(run, "reward"),
  build: (run) => [audit(run), el("section", { class: "grid two-wide" }, componentChart(run), proxyChart(run)), components(run), scatterPanel(run), strangest(run)],
};

function audit(run) {
  const said = run.summary.causes.filter((cause) => /reward|gold|gamed|overopt/i.test(`${cause.name} ${cause.message}`));
  const tried = Array.isArray(run.audit.findings);
  return panel("What was said of the rewards", said.length || tried ? null : "No warning was given of the rewards. `cohort reward audit run.yaml --output-format json > RUN/audit.json` tries cheap completions on them; the result is then shown here.",
    said.length ? el("ol", { class: "said" }, said.map((cause) => causeItem(run, cause))) : null, tried ? auditTable(run.audit) : null);
}

// The result of `cohort reward audit --output-format json`, where the run's folder has it as audit.json.
function auditTable(result) {
  const holes = result.findings.filter((finding) => finding.hole), warnings = result.warnings || [];
  return [
    el("p", {}, `Audit: ${holes.length} of ${result.findings.length} attacks get more than an honest wrong answer (${short(result.wrong)}; a right one ${short(result.right)}).`),
    warnings.map((text) => el("p", { class: "note" }, String(text))),
    holes.length ? table2(Object.keys(holes[0]).filter((key) => key !== "hole"), holes.map((hole) => Object.entries(hole).filter(([key]) => key !== "hole").map(([, value]) => (typeof value === "string" ? value.slice(0, 300) : typeof value === "number" ? short(value) : JSON.stringify(value))))) : null];
}

function componentChart(run) {
  const keys = metricKeys(run, "rewards/", "/mean");
  return chart({ title: "Components", note: "mean score", x: span(run), height: 220, pins: pins(run),
    parts: keys.slice(0, 7).map((key, i) => ({ label: key.split("/")[1], points: metric(run, key), colour: COLOURS[i] })) });
}

function proxyChart(run) {
  const x = span(run);
  if (hasMetric(run, "guard/gold")) {
    return chart({ title: "Proxy and gold", note: "the learned and the true reward", x, height: 220,
      parts: [{ label: "gold", points: metric(run, "guard/gold"), colour: COLOURS[0] }, { label: "proxy", points: metric(run, "guard/proxy"), colour: COLOURS[1], scale: "right" }] });
  }
  const held = heldOut(run);
  return chart({ title: "Trained and held out", note: "gamed: reward rises, held out falls", x, height: 220,
    parts: [{ label: "reward", points: metric(run, "reward"), colour: COLOURS[1] }, ...(held ? [{ ...held.parts[0], label: `held out ${held.parts[0].label}`, colour: COLOURS[0], scale: "right", band: null }] : [])] });
}

function components(run) {
  const table = run.completions, keys = metricKeys(run, "rewards/", "/mean");
  const ends = (key) => { const values = metric(run, key)[1], k = Math.max(1, Math.floor(values.length / 10)); return [mean(values.slice(0, k)), mean(values.slice(-k))]; };
  const rows = keys.map((key) => {
    const name = key.split("/")[1], [first, last] = ends(key), scores = table.scores[name];
    return [name, short(first), short(last), scores && table.tokens ? short(correlation(scores, table.tokens), 2) : "–", scores && table.reward ? short(correlation(scores, table.reward), 2) : "–"];
  });
  return panel("Components", "Means of the first and the last tenth of the steps; correlations over the recorded completions. A score that grows with length alone is a way to game it.",
    table2(["component", "first", "last", "with length", "with the total"], rows));
}

function table2(heads, rows) {
  return el("table", { class: "plain" }, el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) => (i ? el("td", {}, cell) : el("th", { scope: "row" }, cell)))))));
}

function scatterPanel(run) {
  const table = run.completions;
  if (!table.count) return null;
  const keys = [["tokens", "tokens"], ["step", "step"], ["reward", "reward"], ...table.names().map((name) => [`score:${name}`, name])];
  if (!keys.some(([key]) => key === up)) up = "reward";
  const holder = el("div", {});
  const draw = () => { const picture = scatter(table); fill(holder, picture); picture.start(); picture.start = null; };
  holder.classList.add("plot");
  holder.start = draw;
  return panel("One completion, one point", "From early (orange) to late (blue) steps. Click a point to read it.",
    el("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, choice("across", keys, across, (value) => { across = value; draw(); }), choice("up", keys, up, (value) => { up = value; draw(); })), holder);
}

function scatter(table) {
  const stride = Math.max(1, Math.floor(table.count / 20000)), points = [];
  for (let i = 0; i < table.count; i += stride) {
    const [x, y] = [table.number(across, i), table.number(up, i)];
    if (x !== null && y !== null) points.push([x, y, i]);
  }
  const [x0, x1] = extent(points.map((p) => p[0])), [y0, y1] = extent(points.map((p) => p[1])), [s0, s1] = extent(table.step);
  const place = [];
  const node = canvas(`${up} by ${across} of ${points.length} completions`, 260, (ctx, width, height) => {
    const px = (x) => 48 + (width - 60) * ((x - x0) / (x1 - x0 || 1)), py = (y) => height - 26 - (height - 40) * ((y - y0) / (y1 - y0 || 1));
    ctx.fillStyle = css("--soft");
    for (let k = 0; k <= 4; k++) {
      const [x, y] = [x0 + ((x1 - x0) * k) / 4, y0 + ((y1 - y0) * k) / 4];
      ctx.textAlign = "center"; ctx.fillText(short(x), px(x), height - 6);
      ctx.textAlign = "right"; ctx.fillText(short(y), 42, py(y) + 4);
    }
    points.forEach(([x, y, i]) => {
      // A fixed offset for each completion parts points of equal scores.
      const [a, b] = [px(x) + ((i * 7919) % 11) - 5, py(y) + ((i * 104729) % 13) - 6];
      ctx.fillStyle = `${heat(1 - 0.999 * (1 - (table.step[i] - s0) / (s1 - s0 || 1))).replace("rgb", "rgba").replace(")", ", .65)")}`;
      ctx.beginPath(); ctx.arc(a, b, 2.6, 0, 7); ctx.fill();
      place.push([a, b, i]);
    });
  });
  node.addEventListener("click", (event) => {
    const near = place.map(([a, b, i]) => [(a - event.offsetX) ** 2 + (b - event.offsetY) ** 2, i]).sort((p, q) => p[0] - q[0])[0];
    if (near && near[0] < 200) openCompletion(near[1]);
  });
  return node;
}

function strangest(run) {
  const table = run.completions, found = [];
  for (let i = table.count - 1; i >= 0 && found.length < 12; i--) if (table.text("why", i) === "strangest") found.push(i);
  if (!found.length) return null;
  return panel("The strangest completions", "Newest first: far from their batch in length, repetition or symbols.",
    el("ul", { class: "strange" }, found.map((i) => el("li", {}, el("button", { type: "button", onclick: () => openCompletion(i) }, `step ${table.step[i]}, reward ${short(table.number("reward", i))}`), " ", el("span", { class: "text" }, (table.text("completion", i) || "").slice(0, 240))))));
}
