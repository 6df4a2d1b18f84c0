// Lengths with the limit, entropy, KL and clip shares, the warnings, and any metric by name.

let lengthPart = "last", metricSearch = "";

VIEWS.health = {
  name: "Health",
  build: (run) => [
    el("section", { class: "grid" }, healthCharts(run).map((spec) => chart({ pins: pins(run), x: span(run), ...spec }))),
    histogramPanel(run), warningPanel(run), metricPanel(run)],
};

function healthCharts(run) {
  const named = (title, note, keys, more = {}) => ({ title, note, parts: keys.map((key, i) => ({ label: key.split("/").at(-1), points: metric(run, key), colour: COLOURS[i] })), ...more });
  return [
    named("Entropy", "nats a token", ["entropy"], { zero: true }), named("KL to the reference", "nats a token", ["kl"], { zero: true }),
    named("Tokens beyond the clip", "share", ["clip_ratio/low_mean", "clip_ratio/high_mean"], { percent: true }),
    named("Ratio", "smallest and largest", ["ratio/min", "ratio/max"]), named("Cut off", "share of completions", ["completions/clipped_ratio"], { percent: true }),
    named("Change by one update", "nats a token", ["kl/update"], { zero: true }), named("Learning rate", "", ["learning_rate"], { zero: true }),
    named("Equal rewards", "share of groups", ["frac_reward_zero_std"], { percent: true }),
  ].filter((spec) => spec.parts.some((part) => part.points[0].length));
}

function histogramPanel(run) {
  const table = run.completions;
  if (!table.tokens) return null;
  const holder = el("div", { class: "plot" });
  const draw = () => { const picture = histogram(run, table); fill(holder, picture); picture.start(); picture.start = null; };
  holder.start = draw;
  return panel("Lengths of completions", "Of the recorded ones; blue ended by themselves, orange were cut off; the dashed line is the limit.",
    el("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, choice("steps", [["all", "all"], ["first", "first quarter"], ["last", "last quarter"]], lengthPart, (value) => { lengthPart = value; draw(); })), holder);
}

function histogram(run, table) {
  const [low, high] = extent(table.step), edge = (high - low) / 4;
  const inPart = (step) => lengthPart === "all" || (lengthPart === "first" ? step <= low + edge : step >= high - edge);
  const limit = run.config.max_completion_length || 0, longest = Math.max(limit, extent(table.tokens)[1]), count = Math.min(40, longest + 1);
  const bins = Array.from({ length: count }, () => [0, 0]);
  table.tokens.forEach((tokens, i) => { if (tokens !== null && inPart(table.step[i])) bins[Math.min(count - 1, Math.floor((tokens / (longest + 1)) * count))][table.truncated[i]]++; });
  const most = Math.max(1, ...bins.map(([a, b]) => a + b));
  return canvas(`Lengths of completions, 0 to ${longest} tokens`, 180, (ctx, width, height) => {
    const [left, bottom] = [44, height - 22], wide = (width - left - 12) / count, tall = bottom - 10;
    bins.forEach(([ended, cut], k) => {
      const x = left + k * wide, a = (ended / most) * tall, b = (cut / most) * tall;
      ctx.fillStyle = COLOURS[0]; ctx.fillRect(x, bottom - a, Math.max(1, wide - 1), a);
      ctx.fillStyle = WRONG; ctx.fillRect(x, bottom - a - b, Math.max(1, wide - 1), b);
    });
    ctx.fillStyle = ctx.strokeStyle = css("--soft");
    ctx.textAlign = "right"; ctx.fillText(String(most), left - 6, 18); ctx.fillText("0", left - 6, bottom);
    ctx.textAlign = "center";
    for (let k = 0; k <= 4; k++) ctx.fillText(short((longest * k) / 4), left + ((width - left - 12) * k) / 4, height - 6);
    if (limit) { ctx.setLineDash([5, 3]); const x = left + (width - left - 12) * (limit / (longest + 1)); line(ctx, x, 4, x, bottom); }
  });
}

function warningPanel(run) {
  const list = run.summary.causes;
  return panel("Warnings", list.length ? null : "None was given.", list.length ? el("ol", { class: "said" }, list.map((cause) => causeItem(run, cause))) : null);
}

function metricPanel(run) {
  const names = Object.keys(run.metrics), holder = el("div", { class: "grid" });
  const draw = () => {
    const found = metricSearch ? names.filter((name) => name.toLowerCase().includes(metricSearch.toLowerCase())).slice(0, 12) : [];
    fill(holder, found.map((name) => chart({ title: name, x: span(run), pins: pins(run), parts: [{ label: name.split("/").at(-1), points: metric(run, name) }] })));
    startCharts(holder);
  };
  return panel("Any metric", `${names.length} are recorded; docs/metrics.md explains each.`,
    el("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, el("label", { class: "field search" }, "name", el("input", { type: "search", value: metricSearch, placeholder: "such as ratio or seconds", oninput: (event) => { metricSearch = event.target.value; draw(); } }))), holder);
}
