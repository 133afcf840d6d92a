"use strict";
(() => {
  const root = document.documentElement;
  const remember = (value) => { try { localStorage.setItem("fusebench-theme", value); } catch { /* private window */ } };
  const recall = () => { try { return localStorage.getItem("fusebench-theme"); } catch { return null; } };
  const theme = document.getElementById("theme");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  if (recall()) root.dataset.theme = recall();
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches;
    root.dataset.theme = dark ? "light" : "dark";
    remember(root.dataset.theme);
  });

  // Marks: their titles become the page's own tooltip, by pointer and by arrow keys.
  const tip = document.getElementById("tip");
  for (const title of document.querySelectorAll(".m > title")) {
    const mark = title.parentNode;
    mark.dataset.tip = title.textContent;
    title.remove();
  }
  let shown = null;
  const hide = () => { tip.hidden = true; if (shown) shown.classList.remove("on"); shown = null; };
  const show = (mark, x, y) => {
    if (shown && shown !== mark) shown.classList.remove("on");
    shown = mark;
    mark.classList.add("on");
    if (tip.textContent !== mark.dataset.tip) tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + 16 + box.height > innerHeight ? y - box.height - 10 : y + 16) + "px";
  };
  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest ? event.target.closest(".m") : null;
    if (mark) show(mark, event.clientX, event.clientY); else if (shown) hide();
  });
  document.addEventListener("keydown", (event) => {
    const chart = document.activeElement;
    if (event.key === "Escape") return hide();
    if (!chart || chart.tagName !== "svg" || !["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"].includes(event.key)) return;
    const marks = [...chart.querySelectorAll(".m")];
    if (!marks.length) return;
    event.preventDefault();
    const step = event.key === "ArrowRight" || event.key === "ArrowDown" ? 1 : -1;
    const at = marks.indexOf(shown);
    const next = marks[at < 0 ? (step > 0 ? 0 : marks.length - 1) : (at + step + marks.length) % marks.length];
    const box = next.getBoundingClientRect();
    show(next, box.left + box.width / 2, box.top + box.height / 2);
  });
  document.addEventListener("focusout", hide);

  // Tables: sort by a click on the head, filter by words.
  const key = (cell) => {
    if (!cell) return null;
    if (!cell.classList.contains("n")) return cell.textContent.trim().toLowerCase();
    const text = cell.dataset.v || (cell.firstChild ? cell.firstChild.textContent : "");
    const number = parseFloat(text.replace(/,/g, ""));
    return Number.isNaN(number) ? null : number;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return String(a).localeCompare(String(b));
    return a < b ? -1 : a > b ? 1 : 0;
  };
  for (const block of document.querySelectorAll(".block.table")) {
    const body = block.querySelector("tbody");
    const heads = [...block.querySelectorAll("thead th")];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...body.rows].map((row, index) => [key(row.cells[column]), index, row]);
      keyed.sort(([a, i], [b, j]) => {
        const order = compare(a, b);
        return (a === null || b === null ? order : down ? -order : order) || i - j;
      });
      body.append(...keyed.map(([, , row]) => row));
    }));
    const label = block.querySelector(".filter");
    if (body.rows.length < 4) continue;
    label.hidden = false;
    label.querySelector("input").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((part) => { part.open = false; }));
})();
