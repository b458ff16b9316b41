// What scrolls sideways can be reached by the keyboard: code, and tables on a phone.
function reachable() {
  for (const part of document.querySelectorAll("pre, .table-wrapper")) {
    const scrolls = part.scrollWidth > part.clientWidth;
    if (scrolls) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  }
}
addEventListener("load", reachable);
addEventListener("resize", reachable);
