"use strict";
// The buttons in the header of a table sort its rows; missing values are always last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const numeric = head.classList.contains("n");
    const first = numeric ? "descending" : "ascending";
    const order = head.ariaSort === "none" ? first : head.ariaSort === "ascending" ? "descending" : "ascending";
    heads.forEach((other) => { other.ariaSort = "none"; });
    head.ariaSort = order;
    const sign = order === "ascending" ? 1 : -1;
    const text = (row) => row.cells[column].dataset.order ?? row.cells[column].textContent;
    const number = (row) => parseFloat(text(row).replace(/[,\[]/g, "").replace("−", "-"));
    const compare = (a, b) => {
      if (!numeric) return sign * text(a).localeCompare(text(b), "en", { numeric: true });
      const [x, y] = [number(a), number(b)];
      return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}
