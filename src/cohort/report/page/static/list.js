// A list that makes elements for the visible rows alone.

const ROW = 30;

// spec: {label, columns: [{key, name, width, sort, cell(i)}], order: [...], sort: {key, down}, onsort, onpick}
class List {
  constructor(spec) {
    Object.assign(this, { order: [], picked: -1, height: 420 }, spec);
    this.space = el("div", { class: "space" });
    this.body = el("div", {
      class: "rows", tabIndex: 0, role: "listbox", "aria-label": this.label, style: { height: `${this.height}px` },
      onscroll: () => this.paint(), onkeydown: (event) => this.key(event),
    }, this.space);
    this.head = el("div", { class: "heads" });
    this.root = el("div", { class: "list" }, this.head, this.body);
    this.template = this.columns.map((column) => column.width || "minmax(0, 1fr)").join(" ");
    this.showHead();
  }

  showHead() {
    this.head.style.gridTemplateColumns = this.template;
    fill(this.head, this.columns.map((column) => this.onsort && column.sort !== false
      ? el("button", { class: `sort ${column.kind || ""}`, "aria-pressed": String(this.sort.key === column.key), title: `sort by ${column.name}`, onclick: () => this.sortBy(column.key) },
        column.name, this.sort.key === column.key ? (this.sort.down ? " ↓" : " ↑") : "")
      : el("span", { class: column.kind || "" }, column.name)));
  }

  sortBy(key) {
    this.sort = { key, down: this.sort.key === key ? !this.sort.down : true };
    this.showHead();
    this.onsort(this.sort);
  }

  show(order) {
    this.order = order;
    this.space.style.height = `${order.length * ROW}px`;
    this.paint();
  }

  paint() {
    const first = Math.max(0, Math.floor(this.body.scrollTop / ROW) - 5);
    const last = Math.min(this.order.length, first + Math.ceil(this.height / ROW) + 10);
    const rows = [];
    for (let n = first; n < last; n++) rows.push(this.row(n));
    fill(this.space, rows);
    const active = this.order.indexOf(this.picked);
    if (active >= first && active < last) this.body.setAttribute("aria-activedescendant", `${this.id || "row"}-${active}`);
    else this.body.removeAttribute("aria-activedescendant");
  }

  row(n) {
    const i = this.order[n];
    return el("div", {
      class: i === this.picked ? "row picked" : "row", id: `${this.id || "row"}-${n}`, role: "option", "aria-selected": String(i === this.picked),
      style: { top: `${n * ROW}px`, gridTemplateColumns: this.template }, onclick: () => this.pick(n),
    }, this.columns.map((column) => el("span", { class: column.kind || "" }, column.cell(i))));
  }

  pick(n) {
    if (n < 0 || n >= this.order.length) return;
    this.picked = this.order[n];
    const top = n * ROW, body = this.body;
    if (top < body.scrollTop) body.scrollTop = top;
    if (top + ROW > body.scrollTop + this.height) body.scrollTop = top + ROW - this.height;
    this.paint();
    if (this.onpick) this.onpick(this.picked);
  }

  key(event) {
    const moves = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 12, PageUp: -12 };
    const at = this.order.indexOf(this.picked);
    if (event.key in moves) this.pick(Math.min(this.order.length - 1, Math.max(0, at + moves[event.key])));
    else if (event.key === "Home") this.pick(0);
    else if (event.key === "End") this.pick(this.order.length - 1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
