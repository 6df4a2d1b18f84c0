// The first screen: the verdict, the causes of trouble, and the small charts with one x axis.

const VIEWS = {};

VIEWS.overview = { name: "Overview", build: (run) => [verdict(run), causes(run), overviewCharts(run), notes(run)] };

function verdict(run) {
  const said = run.summary;
  return el("section", { class: `verdict ${said.tone}` },
    el("h1", {}, said.headline),
    said.lines.map((text) => el("p", {}, text)),
    said.loss ? el("p", { class: "note" }, said.loss) : null);
}

function pins(run) {
  return run.summary.causes.filter((cause) => cause.step > 0).slice(0, 9).map((cause) => ({ step: cause.step, label: String(run.summary.causes.indexOf(cause) + 1) }));
}

function causes(run) {
  const list = run.summary.causes;
  if (!list.length) return null;
  const shown = list.slice(0, 3), rest = list.slice(3);
  return el("section", { class: "causes" },
    el("h2", {}, list.length === 1 ? "One warning" : `${list.length} warnings`),
    el("ol", {}, shown.map((cause) => causeItem(run, cause))),
    rest.length ? el("details", {}, el("summary", {}, `${rest.length} more`), el("ol", { start: 4 }, rest.map((cause) => causeItem(run, cause)))) : null);
}

function causeItem(run, cause) {
  const rows = Array.isArray(cause.rows) && cause.rows.length ? ` (rows ${cause.rows.slice(0, 8).join(", ")}${cause.rows.length > 8 ? ", …" : ""})` : "";
  const message = String(cause.message ?? "").replace(/^step \d+: /, "");
  return el("li", {}, el("b", {}, String(cause.name)), el("span", { class: "at" }, ` step ${cause.step} `), message, rows);
}

function notes(run) {
  return run.notes.length ? el("ul", { class: "note" }, run.notes.map((text) => el("li", {}, text))) : null;
}

// The x axis of all charts of a run; bars of the last step need half a step.
function span(run) { return [0, Math.max(1, lastStep(run)) + 0.5]; }

function overviewCharts(run) {
  const common = { pins: pins(run), x: span(run) };
  const specs = [heldOut(run), rewardCurves(run), groupStack(run), lengths(run), spreadOut(run), gradient(run)].filter(Boolean);
  return el("section", { class: "grid" }, specs.map((spec) => chart({ ...common, ...spec })));
}

function heldOut(run) {
  const all = Object.keys(run.metrics).filter((key) => /^eval\/[^/]+$/.test(key) && !/^eval\/(samples|reward|loss|teacher_kl)$/.test(key));
  const keys = all.length ? all.sort((a, b) => (b === "eval/accuracy") - (a === "eval/accuracy")).slice(0, 4) : ["eval/reward", "eval/loss", "eval/teacher_kl"].filter((key) => hasMetric(run, key)).slice(0, 1);
  if (!keys.length) return null;
  const parts = keys.map((key) => ({ label: key.slice(5), points: metric(run, key), band: run.bands[key] }));
  const share = parts.every((part) => part.points[1].every((v) => v >= 0 && v <= 1)) && !keys.includes("eval/loss");
  return { title: "Held out", note: "with 95% intervals", parts, percent: share };
}

function rewardCurves(run) {
  if (!hasMetric(run, "reward")) {
    const key = hasMetric(run, "teacher/kl") ? "teacher/kl" : "loss";
    return { title: key === "loss" ? "Loss" : "KL to the teacher", parts: [{ label: key, points: metric(run, key) }] };
  }
  const components = metricKeys(run, "rewards/", "/mean");
  const more = components.length > 1 ? components.slice(0, 4) : [];
  return {
    title: "Reward", note: "of the policy's samples",
    parts: [{ label: "total", points: metric(run, "reward"), colour: css("--ink") },
      ...more.map((key, i) => ({ label: key.split("/")[1], points: metric(run, key), colour: COLOURS[i] }))],
  };
}

// Groups of each step as shares: all wrong, mixed, all right; without the rows' history equal and unequal rewards.
function groupStack(run) {
  const counts = groupCounts(run);
  if (counts.size) {
    const steps = [...counts.keys()].sort((a, b) => a - b);
    const share = (key) => [steps, steps.map((step) => counts.get(step)[key] / counts.get(step).all)];
    return {
      title: "Groups", note: "only mixed ones teach right from wrong", stack: true, percent: true,
      parts: [{ label: "all wrong", points: share("wrong"), colour: WRONG }, { label: "mixed", points: share("mixed"), colour: MIXED }, { label: "all right", points: share("right"), colour: RIGHT }],
    };
  }
  const [steps, zero] = metric(run, "frac_reward_zero_std");
  if (!steps.length) return null;
  return {
    title: "Groups", note: "equal rewards teach nothing", stack: true, percent: true,
    parts: [{ label: "equal rewards", points: [steps, zero], colour: WRONG }, { label: "unequal", points: [steps, zero.map((v) => 1 - v)], colour: MIXED }],
  };
}

function groupCounts(run) {
  const counts = new Map(), { step, n, right } = run.rows;
  for (let i = 0; i < step.length; i++) {
    if (right[i] === null || !n[i]) continue;
    const of = counts.get(step[i]) || { wrong: 0, mixed: 0, right: 0, all: 0 };
    of[right[i] === 0 ? "wrong" : right[i] === n[i] ? "right" : "mixed"]++;
    of.all++;
    counts.set(step[i], of);
  }
  return counts;
}

function lengths(run) {
  if (!hasMetric(run, "completions/mean_length")) return null;
  const cut = lastOf(run, "completions/clipped_ratio");
  return {
    title: "Length", note: `tokens${cut ? `; ${percent(cut)} cut off at last` : ""}`, zero: true, level: run.config.max_completion_length,
    parts: [{ label: "mean", points: metric(run, "completions/mean_length"), colour: COLOURS[0] }, { label: "longest", points: metric(run, "completions/max_length"), colour: COLOURS[5] },
      { label: "held out", points: metric(run, "eval/completions/mean_length"), colour: COLOURS[1] }],
  };
}

function spreadOut(run) {
  const parts = [{ label: "entropy", points: metric(run, "entropy"), colour: COLOURS[2] }, { label: "KL", points: metric(run, "kl"), colour: COLOURS[1], scale: "right" }];
  return parts.some((part) => part.points[0].length) ? { title: "Entropy and KL", note: "nats a token", zero: true, parts } : null;
}

function gradient(run) {
  if (!hasMetric(run, "grad_norm")) return null;
  const loss = hasMetric(run, "reward") ? [{ label: "loss", points: metric(run, "loss"), colour: COLOURS[6], scale: "right" }] : [];
  return { title: loss.length ? "Gradient and loss" : "Gradient", note: "norm", zero: true, parts: [{ label: "gradient norm", points: metric(run, "grad_norm"), colour: COLOURS[3] }, ...loss] };
}
