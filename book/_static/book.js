// One button opens and closes all folded code of a page.
document.addEventListener("DOMContentLoaded", () => {
  // The bibliography has roles that are deprecated, and a list of other things than items.
  document.querySelectorAll(".citation-list, .citation").forEach((one) => one.removeAttribute("role"));
  const folded = [...document.querySelectorAll("details.hide")];
  const bar = document.querySelector(".article-header-buttons");
  if (!folded.length || !bar) return;
  const button = document.createElement("button");
  button.className = "btn btn-sm all-code";
  button.type = "button";
  button.textContent = "Show all code";
  button.addEventListener("click", () => {
    const open = folded.some((one) => !one.open);
    folded.forEach((one) => (one.open = open));
    button.textContent = open ? "Hide all code" : "Show all code";
  });
  bar.prepend(button);
});
