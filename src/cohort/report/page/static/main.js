// The frame: header, tabs, keys, the live connection.

const KEYS = [["1 … 9", "views"], ["← →", "step or evaluation, where the view has a slider"], ["↑ ↓ or k j", "entries of a list"], ["/", "search the completions"], ["[ ]", "previous and next run"], ["d", "dark or light"], ["?", "this list"]];

function current() { return model.runs[state.run] || model.runs[0]; }

function shownViews() { return Object.entries(VIEWS).filter(([, view]) => !view.has || view.has(current())); }

function showHeader() {
  const run = current(), config = run.config;
  const going = !run.ended.by;
  const facts = [config.method, String(config.model ?? "").split("/").at(-1), `${lastStep(run)} steps`].filter(Boolean).map((text) => el("span", {}, String(text)));
  fill(byId("top"),
    el("span", { class: "brand" }, "cohort"),
    model.runs.length > 1 ? choice("run", model.runs.map((each, i) => [i, each.name]), state.run, (value) => { state.run = Number(value); showAll(); }) : el("b", {}, run.name),
    facts,
    model.live ? el("span", { class: `live ${going ? "going" : ""}`, id: "live", role: "status" }, going ? "live" : "ended") : null,
    el("span", { class: "grow" }),
    el("button", { type: "button", id: "theme", onclick: swapTheme }, "Dark / light"), el("button", { type: "button", onclick: help, "aria-label": "Keys" }, "?"));
}

function showTabs() {
  fill(byId("tabs"), shownViews().map(([key, view], i) => el("button", {
    type: "button", "aria-current": key === state.view ? "page" : null, onclick: () => go(key), title: i < 9 ? `key ${i + 1}` : "",
  }, view.name)));
}

function go(view) {
  state.view = view;
  showTabs();
  show();
  byId("view").scrollTop = 0;
}

function show() {
  const run = current();
  if (!shownViews().some(([key]) => key === state.view)) state.view = "overview";
  writeAddress();
  // The darkest blue and grey are hard to see on a dark page.
  [COLOURS[0], COLOURS[6]] = theme() === "dark" ? ["#4AA3DF", "#B0B0B0"] : ["#0072B2", "#6F6F6F"];
  clearCharts();
  const view = VIEWS[state.view];
  fill(byId("view"), view.build(run));
  startCharts(byId("view"));
  if (view.ready) view.ready(run);
}

function showAll() {
  showHeader();
  showTabs();
  show();
}

function swapTheme() {
  theme(theme() === "dark" ? "light" : "dark");
  show();
}

function help() {
  const dialog = byId("help");
  fill(dialog, el("h2", {}, "Keys"), el("dl", { class: "columns" }, KEYS.map(([key, text]) => el("div", {}, el("dt", {}, key), el("dd", {}, text)))), el("button", { type: "button", onclick: () => dialog.close() }, "Close"));
  dialog.showModal();
}

function move(by) {
  const input = byId("view").querySelector(".slider input");
  if (!input) return;
  input.value = String(Number(input.value) + by);
  input.dispatchEvent(new Event("input"));
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) { if (event.key === "Escape") event.target.blur(); return; }
  const views = shownViews(), runs = model.runs.length;
  if (/^[1-9]$/.test(event.key) && views[Number(event.key) - 1]) go(views[Number(event.key) - 1][0]);
  else if (event.key === "ArrowLeft") move(-1);
  else if (event.key === "ArrowRight") move(1);
  else if (event.key === "/") { if (state.view !== "completions" && VIEWS.completions.has(current())) go("completions"); const search = byId("search"); if (search) search.focus(); }
  else if ((event.key === "[" || event.key === "]") && runs > 1) { state.run = (state.run + (event.key === "]" ? 1 : runs - 1)) % runs; showAll(); }
  else if (event.key === "d") swapTheme();
  else if (event.key === "?") help();
  else return;
  event.preventDefault();
}

// What a live run writes arrives as events: rows of its files, and the verdict anew.
function follow() {
  const run = current(), place = encodeURIComponent(JSON.stringify(run.place));
  const source = new EventSource(`events?place=${place}`);
  let due = null;
  const later = () => { due = due || setTimeout(() => { due = null; refresh(); }, 400); };
  source.addEventListener("rows", (event) => { for (const [file, rows] of Object.entries(JSON.parse(event.data))) append(run, file, rows); later(); });
  source.addEventListener("judged", (event) => { Object.assign(run, JSON.parse(event.data)); later(); });
  source.addEventListener("again", () => location.reload());
  source.onerror = () => { const node = byId("live"); if (node) { node.textContent = "connection lost"; node.classList.remove("going"); } };
  source.onopen = () => showHeader();
}

function refresh() {
  const view = VIEWS[state.view], top = document.documentElement.scrollTop;
  showHeader();
  showTabs();
  if (/^(INPUT|SELECT)$/.test(document.activeElement.tagName) && !view.update) return;
  if (view.update) view.update(current());
  else keepPlace(show);
  document.documentElement.scrollTop = top;
}

// The list that is built anew stands where the old one stood.
function keepPlace(build) {
  const before = document.querySelector(".rows"), focused = before && before === document.activeElement;
  const top = before ? before.scrollTop : 0;
  build();
  const after = document.querySelector(".rows");
  if (!after) return;
  after.scrollTop = top;
  if (focused) after.focus({ preventScroll: true });
}

async function begin() {
  readAddress();
  await loadHead();
  showAll();
  if (document.readyState === "loading") await new Promise((go) => addEventListener("DOMContentLoaded", go));
  await loadTexts();
  showTabs();
  readAddress();
  show();
  if (model.live) follow();
  document.documentElement.dataset.ready = "yes";
  let resized = null;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(resizeCharts, 150); });
  addEventListener("keydown", press);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
}

begin().catch((error) => {
  fill(byId("view"), el("h1", {}, "This page could not be shown"), el("p", {}, `It needs a browser of 2023 or later (${error}).`));
  throw error;
});
