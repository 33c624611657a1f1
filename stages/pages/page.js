// What the page does with scripts; without them it says the same. Tables of class "sorts" are sorted by a click on a
// head, one of the findings is chosen by name, and a cell tells where its number comes from: a click, or Enter in a
// table (one cell of each takes the focus, arrows move it).
function value(row, column) {
  const text = row.cells[column].firstChild?.textContent.trim() ?? "";
  const number = Number.parseFloat(text.replace("\u2212", "-").replaceAll(",", ""));
  return Number.isNaN(number) ? text : number;
}
function compare(one, other) {
  if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
  return one < other ? -1 : Number(one > other);
}
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const way = head.ariaSort === "ascending" ? "descending" : "ascending";
      for (const other of heads) other.ariaSort = null;
      head.ariaSort = way;
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((one, other) => compare(value(one, column), value(other, column)));
      body.append(...(way === "ascending" ? rows : rows.reverse()));
    });
  }
}
const findings = [...document.querySelectorAll("details.finding")];
if (findings.length) {
  const label = document.createElement("label");
  const chosen = document.createElement("select");
  chosen.append(new Option("all folded", ""));
  for (const one of findings) chosen.append(new Option(one.id.replace("-", ": ").replaceAll("_", " "), one.id));
  chosen.addEventListener("change", () => {
    for (const one of findings) one.open = one.id === chosen.value;
    document.getElementById(chosen.value)?.scrollIntoView();
  });
  label.append("Show ", chosen);
  findings[0].previousElementSibling.before(label);
}
addEventListener("hashchange", () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
});

const addresses = [];
function list(node, start) {
  if (typeof node === "number") return void (addresses[node] = start.replace(/\/$/, ""));
  for (const [word, below] of Object.entries(node)) {
    list(below, word === "/" ? start : start + word + (start === "" ? "" : "/"));
  }
}
list(JSON.parse(document.getElementById("addresses")?.textContent ?? "{}"), "");
const origin = document.createElement("dialog");
origin.className = "origin";
origin.ariaLabel = "Where this number comes from";
document.body.append(origin);
function tell(cell) {
  const [file, keys] = (addresses[cell.dataset.of] ?? cell.dataset.of).split(/:(.*)/s);
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const command = `make audit FILE=${file}${keys ? ` KEY=${quoted(keys)}` : ""}`;
  const [address, line] = [document.createElement("code"), document.createElement("code")];
  address.append(keys ? `${file}: ${keys}` : file);
  line.append(command);
  const copy = document.createElement("button");
  copy.append("Copy the command");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(command);
    copy.textContent = "Copied";
  });
  const close = document.createElement("button");
  close.append("Close");
  close.addEventListener("click", () => origin.close());
  const [value] = cell.innerText.match(/[+\u2212<]?\d[\d.,]*%?/) ?? [""];
  const [first, second] = [document.createElement("p"), document.createElement("p")];
  first.append(`${value} is from `, address);
  second.append(line);
  origin.replaceChildren(first, second, copy, close);
  origin.show();
  cell.focus({ preventScroll: true });
}
const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
for (const table of document.querySelectorAll("table")) {
  const cells = [...table.querySelectorAll("td[data-of]")];
  if (!cells.length) continue;
  for (const cell of cells) cell.tabIndex = -1;
  cells[0].tabIndex = 0;
  table.addEventListener("click", (event) => {
    const cell = event.target.closest("td[data-of]");
    if (cell && !event.target.closest("a")) tell(cell);
  });
  table.addEventListener("focusin", (event) => {
    if (!event.target.matches("td[data-of]")) return;
    for (const cell of cells) cell.tabIndex = cell === event.target ? 0 : -1;
  });
  table.addEventListener("keydown", (event) => {
    const cell = event.target;
    if (!cell.matches("td[data-of]")) return;
    if (event.key === "Enter") tell(cell);
    if (!(event.key in steps)) return;
    event.preventDefault();
    const [down, right] = steps[event.key];
    let row = cell.parentElement, next = cell;
    do {
      if (down) {
        row = down > 0 ? row.nextElementSibling : row.previousElementSibling;
        next = row?.cells[cell.cellIndex];
      } else next = right > 0 ? next.nextElementSibling : next.previousElementSibling;
    } while (next ? !next.matches("td[data-of]") : down && row);
    next?.focus();
  });
}
addEventListener("keydown", (event) => {
  if (event.key === "Escape") origin.close();
});
