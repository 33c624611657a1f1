// What the page does with scripts; without them it says the same. Tables of class "sorts" are sorted by a click on a
// head, and one of the findings is chosen by name.
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
