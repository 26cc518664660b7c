"use strict";
(() => {
  const root = document.documentElement;

  // Tables sort by any column: numbers by size, what is missing last.
  const key = (row, column) => {
    const text = row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
    const number = text === "" ? NaN : Number(text);
    return { text, number, isNumber: !Number.isNaN(number) };
  };
  const compare = (a, b) => {
    if ((a.text === "") !== (b.text === "")) return a.text === "" ? Infinity : -Infinity;
    if (a.isNumber && b.isNumber) return a.number - b.number;
    return a.text.localeCompare(b.text, "en", { numeric: true });
  };
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const table = heading.closest("table");
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [key(row, heading.cellIndex), row]);
      rows.sort(([a], [b]) => {
        const order = compare(a, b);
        return Number.isFinite(order) ? (descending ? -order : order) : Math.sign(order);
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  }

  // One app, or all of them; the choice stands in the address, so that it can be kept as a bookmark.
  const choices = [...document.querySelectorAll("input[name=app]")];
  const show = (app) => {
    for (const section of document.querySelectorAll("section[data-app]")) {
      section.hidden = app !== "" && section.dataset.app !== app;
    }
  };
  for (const choice of choices) {
    choice.addEventListener("change", () => {
      show(choice.value);
      history.replaceState(null, "", choice.value ? "#app=" + choice.value : "#");
    });
  }
  const follow = () => {
    const wanted = location.hash.startsWith("#app=") ? location.hash.slice(5) : "";
    const choice = choices.find((each) => each.value === wanted);
    if (choice) {
      choice.checked = true;
      show(choice.value);
    }
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.closest("section").hidden = false;
      target.scrollIntoView();
    }
  };
  window.addEventListener("hashchange", follow);
  follow();

  const all = document.getElementById("all-details");
  all.addEventListener("click", () => {
    const open = all.getAttribute("aria-pressed") !== "true";
    for (const run of document.querySelectorAll("details.run")) run.open = open;
    all.setAttribute("aria-pressed", String(open));
  });

  const theme = document.getElementById("theme");
  const dark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    theme.setAttribute("aria-pressed", String(dark()));
  });
  theme.setAttribute("aria-pressed", String(dark()));

  // Paper shows everything that is chosen.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const each of opened) each.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
  });
  root.classList.add("scripted");
})();
