// Curves by uPlot, with bands, stacks and pins of warnings; charts of one group share the x axis and the cursor.

const MANY = 60;
let drawn = [];

function clearCharts() {
  drawn.forEach((plot) => plot.destroy());
  drawn = [];
}

// Means over windows of `width` values, shorter at the ends.
function smooth(values, width) {
  const reach = width >> 1, sums = [0];
  for (const value of values) sums.push(sums.at(-1) + value);
  return values.map((_, i) => {
    const [a, b] = [Math.max(0, i - reach), Math.min(values.length, i + reach + 1)];
    return (sums[b] - sums[a]) / (b - a);
  });
}

function faint(colour) { return `${colour}55`; }

// One curve as the series that uPlot draws: many points are drawn faintly under their running mean.
function curve(part, i) {
  const colour = part.colour || COLOURS[i % COLOURS.length];
  const base = { label: part.label, stroke: colour, width: 2, scale: part.scale || "y", spanGaps: true, value: (_, v) => part.percent ? percent(v) : short(v) };
  const [steps, values] = part.points;
  const dots = { show: steps.length <= MANY, size: 5, fill: colour };
  if (steps.length <= MANY || part.raw) return [{ ...base, dash: part.dash, points: { ...dots, show: dots.show && !part.raw }, data: [steps, values] }];
  const width = Math.max(5, Math.floor(steps.length / 20)) | 1;
  const faintly = { ...base, label: `${part.label} (raw)`, stroke: faint(colour), width: 1, points: { show: false }, data: [steps, values], quiet: true };
  return [faintly, { ...base, dash: part.dash, points: { show: false }, data: [steps, smooth(values, width)] }];
}

function bandSeries(part, i) {
  if (!part.band) return [];
  const colour = part.colour || COLOURS[i % COLOURS.length];
  const edge = { label: "", stroke: "transparent", width: 0, points: { show: false }, scale: part.scale || "y", spanGaps: true, quiet: true };
  return [{ ...edge, data: [part.band.step, part.band.high], high: colour }, { ...edge, data: [part.band.step, part.band.low] }];
}

// Layers of a stack as opaque bars: the sum of all first, so that each smaller one covers the part below.
function stacked(parts) {
  const steps = distinct(parts.flatMap((part) => part.points[0])).sort((a, b) => a - b);
  const sums = Array(steps.length).fill(0), place = new Map(steps.map((step, i) => [step, i]));
  return parts.map((part, i) => {
    part.points[0].forEach((step, k) => { sums[place.get(step)] += part.points[1][k] || 0; });
    const own = new Map(part.points[0].map((step, k) => [step, part.points[1][k]]));
    const colour = part.colour || COLOURS[i % COLOURS.length];
    return {
      label: part.label, stroke: colour, fill: colour, width: 0, points: { show: false }, scale: "y",
      paths: uPlot.paths.bars({ size: [1, Infinity], gap: 0 }), data: [steps, [...sums]],
      value: (u, v, s, index) => index === null || index === undefined ? "–" : short(own.get(u.data[0][index])),
    };
  }).reverse();
}

function axes(spec) {
  const [text, grid] = [css("--soft"), css("--line")];
  const look = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const format = (_, marks) => marks.map((v) => (v === null ? "" : spec.percent ? percent(v) : short(v)));
  const list = [{ ...look, size: 26, gap: 4, space: 60, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000], label: undefined }, { ...look, size: 48, gap: 4, values: format, scale: "y" }];
  if (spec.parts.some((part) => part.scale === "right")) {
    list.push({ ...look, side: 1, size: 44, gap: 4, scale: "right", grid: { show: false }, values: (_, marks) => marks.map((v) => short(v)) });
  }
  return list;
}

// Draws dashed lines with numbers where warnings were given, and a level such as a limit.
function marks(spec) {
  return (u) => {
    const { ctx, bbox } = u, ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.lineWidth = ratio;
    ctx.font = `${10 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    (spec.pins || []).forEach((pin) => {
      const x = Math.round(u.valToPos(pin.step, "x", true));
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) return;
      ctx.strokeStyle = ctx.fillStyle = css("--bad");
      ctx.setLineDash([3 * ratio, 3 * ratio]);
      line(ctx, x, bbox.top, x, bbox.top + bbox.height);
      ctx.setLineDash([]);
      ctx.beginPath();
      ctx.arc(x, bbox.top + 7 * ratio, 7 * ratio, 0, 7);
      ctx.fill();
      ctx.fillStyle = css("--page");
      ctx.fillText(pin.label, x, bbox.top + 10.5 * ratio);
    });
    if (spec.level !== undefined && spec.level !== null) {
      const y = u.valToPos(spec.level, "y", true);
      ctx.strokeStyle = css("--soft");
      ctx.setLineDash([6 * ratio, 3 * ratio]);
      line(ctx, bbox.left, y, bbox.left + bbox.width, y);
    }
    ctx.restore();
  };
}

function line(ctx, x1, y1, x2, y2) {
  ctx.beginPath();
  ctx.moveTo(x1, y1);
  ctx.lineTo(x2, y2);
  ctx.stroke();
}

function limits(spec, all) {
  const values = all.flatMap((part) => part.data[1]).filter((v) => v !== null && v !== undefined);
  if (spec.level !== undefined && spec.level !== null) values.push(spec.level);
  let [low, high] = extent(values);
  if (spec.percent && low >= 0 && high <= 1) return [0, high > 0.5 ? 1 : Math.max(0.05, high * 1.15)];
  if (spec.zero) low = Math.min(0, low);
  const room = (high - low || Math.abs(high) || 1) * 0.07;
  return [spec.zero && low === 0 ? 0 : low - room, high + room];
}

// spec: {title, note, parts: [{label, points, colour, band, scale, dash}], stack, percent, zero, level, pins, height, x, sync}
function chart(spec) {
  const parts = spec.parts.filter((part) => part.points[0].length);
  const all = spec.stack ? stacked(parts) : parts.flatMap((part, i) => [...bandSeries(part, i), ...curve(part, i)]);
  const host = el("div", { class: "plot", role: "img", "aria-label": `${spec.title}. ${told(parts, spec)}` });
  const figure = el("figure", { class: "chart" }, el("figcaption", {}, el("b", {}, spec.title), spec.note ? el("span", {}, ` ${spec.note}`) : null), host);
  if (!parts.length) {
    host.append(el("p", { class: "note" }, "nothing was recorded"));
    return figure;
  }
  const tables = all.map((part) => part.data);
  const data = uPlot.join(tables);
  const bands = all.flatMap((part, i) => (part.high ? [{ series: [i + 1, i + 2], fill: faint(part.high).slice(0, 7) + "2e" }] : []));
  const left = all.filter((part) => part.scale !== "right");
  const options = {
    width: 400, height: spec.height || 170, padding: [8, 8, 0, 0], bands,
    scales: { x: { time: false, range: () => spec.x || widened(data[0]) }, y: { range: () => limits(spec, left.length ? left : all) } },
    axes: axes(spec), cursor: { sync: { key: spec.sync || "steps" }, points: { size: 6 }, drag: { x: false, y: false }, y: false },
    legend: { live: true }, hooks: { draw: [marks(spec)] },
    series: [{ label: "step" }, ...all.map(({ data: _, high: __, quiet: ___, ...series }) => series)],
  };
  host.start = () => {
    const plot = new uPlot({ ...options, width: Math.max(200, host.clientWidth) }, data, host);
    all.forEach((part, i) => { if (part.quiet) plot.root.querySelectorAll(".u-series")[i + 1].hidden = true; });
    plot.root.querySelectorAll(".u-marker").forEach((marker) => marker.setAttribute("aria-hidden", "true"));
    drawn.push(plot);
  };
  return figure;
}

function widened(steps) {
  const [low, high] = [steps[0], steps.at(-1)];
  return low === high ? [low - 1, high + 1] : [low, high];
}

function told(parts, spec) {
  const form = spec.percent ? percent : short;
  return parts.map((part) => `${part.label}: ${form(part.points[1][0])} to ${form(part.points[1].at(-1))}`).join("; ");
}

// Charts need their place in the document for their width.
function startCharts(root) {
  root.querySelectorAll(".plot").forEach((host) => { if (host.start) { host.start(); host.start = null; } });
}

function resizeCharts() {
  drawn.forEach((plot) => {
    const width = plot.root.parentElement ? plot.root.parentElement.clientWidth : 0;
    if (width) plot.setSize({ width, height: plot.height });
  });
}

// A plain canvas of the device's resolution: paint(ctx, width, height).
function canvas(label, height, paint) {
  const node = el("canvas", { role: "img", "aria-label": label, class: "canvas", style: { height: `${height}px` } });
  node.start = () => {
    const ratio = devicePixelRatio || 1, width = node.clientWidth;
    [node.width, node.height] = [width * ratio, height * ratio];
    const ctx = node.getContext("2d");
    ctx.scale(ratio, ratio);
    ctx.font = "11px system-ui, sans-serif";
    paint(ctx, width, height);
  };
  node.classList.add("plot");
  return node;
}
