// Sorts the table, copies recipes, and opens everything before printing. The page reads without it.
"use strict";
{
  const announcer = document.getElementById("announcer");

  function sortBy(table, column, heading) {
    const isAscending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.sort;
    const compare = (a, b) =>
      Number.isNaN(Number(a)) || Number.isNaN(Number(b)) ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    const rows = [...table.tBodies[0].rows];
    const known = rows.filter((row) => key(row) !== undefined);
    known.sort((a, b) => (isAscending ? 1 : -1) * compare(key(a), key(b)));
    table.tBodies[0].append(...known, ...rows.filter((row) => key(row) === undefined));
    announcer.textContent = `Sorted by ${heading.innerText}, ${isAscending ? "lowest" : "highest"} first.`;
  }

  const table = document.getElementById("sides");
  for (const heading of table ? table.tHead.rows[0].cells : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(table, heading.cellIndex, heading));
    heading.append(button);
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected: press Ctrl+C";
      }
      announcer.textContent = button.textContent;
      setTimeout(() => (button.textContent = "Copy"), 4000);
    });
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const part of opened) part.open = true;
  });
  addEventListener("afterprint", () => opened.forEach((part) => (part.open = false)));
}
