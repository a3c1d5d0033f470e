"use strict";
// Times that pass, the state of the connection, the search key, and the stream of a call. Everything else is HTML.
(() => {
  const steps = [[60, 1, "s"], [3600, 60, "min"], [86400, 3600, "h"], [Infinity, 86400, "d"]];

  function ago(moment) {
    const seconds = (Date.now() - moment) / 1000;
    const size = Math.abs(seconds);
    if (size < 1) return "now";
    const [, unit, name] = steps.find(([limit]) => size < limit);
    const words = `${Math.round(size / unit)} ${name}`;
    return seconds > 0 ? `${words} ago` : `in ${words}`;
  }

  function showTimes() {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const words = ago(Date.parse(time.dateTime));
      if (time.textContent !== words) time.textContent = words;
    }
  }
  setInterval(showTimes, 5000);

  function connection(state, words) {
    const element = document.getElementById("connection");
    if (!element) return;
    element.className = `connection ${state}`;
    if (element.textContent !== words) element.textContent = words;
  }
  document.addEventListener("htmx:sseOpen", () => connection("on", "Live"));
  document.addEventListener("htmx:sseError", () => connection("off", "Reconnecting"));
  document.addEventListener("htmx:sendError", () => connection("off", "Reconnecting"));

  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
    const search = document.getElementById("search");
    if (event.key === "/" && !typing && search && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  });
})();
