"use strict";
// Filters of the gallery. Without this script every card is shown, and paper leaves folded tables out.
(() => {
  // Unfold tables for printing.
  const unfolded = [];
  addEventListener("beforeprint", () => {
    for (const box of document.querySelectorAll("details[data-paper]:not([open])")) {
      box.open = true;
      unfolded.push(box);
    }
  });
  addEventListener("afterprint", () => {
    for (const box of unfolded.splice(0)) box.open = false;
  });

  const bar = document.querySelector("[data-filters]");
  if (!bar) return;
  const cards = [...document.querySelectorAll("[data-flip]")];
  const select = bar.querySelector("select");
  const shown = bar.querySelector("[data-shown]");
  const none = document.querySelector("[data-none]");
  const filters = { change: "", benchmark: "", category: "" };

  const apply = () => {
    let count = 0;
    for (const card of cards) {
      const matches = Object.entries(filters).every(([key, value]) => !value || card.dataset[key] === value);
      card.hidden = !matches;
      count += matches;
    }
    for (const bench of document.querySelectorAll("[data-bench]")) {
      const own = [...bench.querySelectorAll("[data-flip]")];
      const filtered = Object.values(filters).some(Boolean);
      bench.hidden = filtered && own.every((card) => card.hidden);
    }
    shown.textContent = `${count} of ${cards.length} shown`;
    none.hidden = count > 0;
  };

  const press = (key, value) => {
    filters[key] = value;
    for (const button of bar.querySelectorAll(`button[data-${key}]`)) {
      button.setAttribute("aria-pressed", String(button.dataset[key] === value));
    }
  };

  bar.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const key = "change" in button.dataset ? "change" : "benchmark";
    press(key, button.dataset[key]);
    if (key === "benchmark") {
      for (const group of select.querySelectorAll("optgroup")) {
        group.disabled = filters.benchmark !== "" && group.dataset.of !== filters.benchmark;
      }
      if (select.selectedOptions[0].parentElement.disabled) {
        select.value = "";
        filters.category = "";
      }
    }
    apply();
  });
  select.addEventListener("change", () => {
    filters.category = select.value;
    apply();
  });

  select.value = ""; // browsers restore it on reload
  bar.hidden = false;
  apply();
})();
