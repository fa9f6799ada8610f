/* What scrolls sideways can be reached by Tab, and only while it scrolls; the theme sees to tables and code. */
document.addEventListener("DOMContentLoaded", () => {
  const article = document.querySelector(".bd-article");
  if (!article) return;
  const mark = () => {
    for (const box of article.querySelectorAll("figure, .planner-wide, .math")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };
  new ResizeObserver(mark).observe(article);
  new MutationObserver(mark).observe(article, { subtree: true, childList: true });
});
