"use strict";
// Without this script every card of the gallery is shown, and tables stay folded on paper.
(() => {
  // Tables that lie folded on the screen belong on paper.
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
  const wanted = { change: "", benchmark: "", category: "" };

  const apply = () => {
    let count = 0;
    for (const card of cards) {
      const fits = Object.entries(wanted).every(([key, value]) => !value || card.dataset[key] === value);
      card.hidden = !fits;
      count += fits;
    }
    for (const bench of document.querySelectorAll("[data-bench]")) {
      const own = [...bench.querySelectorAll("[data-flip]")];
      const filtered = Object.values(wanted).some(Boolean);
      bench.hidden = filtered && own.every((card) => card.hidden);
    }
    shown.textContent = `${count} of ${cards.length} shown`;
    none.hidden = count > 0;
  };

  const press = (key, value) => {
    wanted[key] = value;
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
        group.disabled = wanted.benchmark !== "" && group.dataset.of !== wanted.benchmark;
      }
      if (select.selectedOptions[0].parentElement.disabled) {
        select.value = "";
        wanted.category = "";
      }
    }
    apply();
  });
  select.addEventListener("change", () => {
    wanted.category = select.value;
    apply();
  });

  select.value = ""; // browsers restore it on reload
  bar.hidden = false;
  apply();
})();
