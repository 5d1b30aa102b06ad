"use strict";
// The filter over all answers. Texts of models are set as text, never as markup.
(() => {
  const get = (name) => document.getElementById("answers-" + name);
  const {models, rows} = JSON.parse(get("data").textContent);
  const [show, form, count, list, more] = ["show", "form", "count", "list", "more"].map(get);
  const columns = ["model", "suite", "condition", "outcome"];
  const cell = (row, column) => (column ? row[column] : models[row[0]]);
  const make = (tag, text, parent) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };
  let found = [];
  let shown = 0;

  const choices = columns.map((name, column) => {
    const select = make("select", undefined, make("label", name + " ", form));
    select.setAttribute("aria-label", name);
    make("option", "any", select).value = "";
    const values = new Set(rows.map((row) => cell(row, column)));
    for (const each of values) make("option", each, select).value = each;
    return select;
  });
  const words = make("input", undefined, make("label", "words in prompt or answer ", form));
  words.type = "search";

  const append = () => {
    for (const row of found.slice(shown, shown + 25)) {
      const details = make("details", undefined, list);
      const summary = make("summary", undefined, details);
      make("bdi", row[4], summary);
      make("small", columns.map((_, column) => cell(row, column)).join(" \u00b7 "), summary);
      const answer = make("pre", row[5], make("div", undefined, details));
      answer.dir = "auto";
    }
    shown = Math.min(found.length, shown + 25);
    count.textContent = found.length + " of " + rows.length + " answers; " + shown + " listed";
    more.hidden = shown === found.length;
  };
  const filter = () => {
    const text = words.value.toLowerCase();
    found = rows.filter((row) =>
      choices.every((each, column) => !each.value || each.value === cell(row, column)) &&
      (row[4].toLowerCase().includes(text) || row[5].toLowerCase().includes(text)));
    shown = 0;
    list.replaceChildren();
    append();
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filter);
  more.addEventListener("click", append);
  show.hidden = false;
  show.addEventListener("click", () => {
    form.hidden = false;
    show.hidden = true;
    filter();
    choices[0].focus();
  });
})();
