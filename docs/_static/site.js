// What the theme leaves out for readers by keyboard and by ear.
document.addEventListener("DOMContentLoaded", () => {
  for (const each of document.querySelectorAll("[role=heading]:not([aria-level])")) {
    each.setAttribute("aria-level", "2");
  }
  for (const each of document.querySelectorAll("pre, table.docutils")) each.tabIndex = 0;
});
