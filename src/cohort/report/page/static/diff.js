// Differences of two texts, word by word.

const LARGEST_TABLE = 4000000;

// [["same" | "gone" | "new", text], ...] by the longest common subsequence of words and spaces.
function differences(before, after) {
  const [a, b] = [words(before), words(after)];
  let start = 0, end = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const parts = [["same", a.slice(0, start).join("")], ...middle(a.slice(start, a.length - end), b.slice(start, b.length - end)), ["same", a.slice(a.length - end).join("")]];
  return joined(parts.filter(([, text]) => text));
}

function words(text) { return text.match(/\s+|\w+|[^\s\w]/gu) || []; }

function middle(a, b) {
  const [n, m] = [a.length, b.length];
  if (n * m > LARGEST_TABLE) return [["gone", a.join("")], ["new", b.join("")]];
  const size = m + 1, table = new Uint16Array((n + 1) * size);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      table[i * size + j] = a[i] === b[j] ? table[(i + 1) * size + j + 1] + 1 : Math.max(table[(i + 1) * size + j], table[i * size + j + 1]);
    }
  }
  const parts = [];
  let i = 0, j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && a[i] === b[j]) { parts.push(["same", a[i]]); i++; j++; }
    else if (j >= m || (i < n && table[(i + 1) * size + j] >= table[i * size + j + 1])) parts.push(["gone", a[i++]]);
    else parts.push(["new", b[j++]]);
  }
  return parts;
}

function joined(parts) {
  const result = [];
  for (const [kind, text] of parts) {
    if (result.length && result.at(-1)[0] === kind) result.at(-1)[1] += text;
    else result.push([kind, text]);
  }
  return result;
}

// The text of one side, with what the other side lacks marked.
function marked(parts, side) {
  return el("div", { class: "text" }, parts.filter(([kind]) => kind === "same" || kind === side)
    .map(([kind, text]) => (kind === "same" ? text : el(side === "gone" ? "del" : "ins", {}, text))));
}
