"use strict";
// Times that pass, the state of the connection, the search key, copying, and the stream of a call. Everything else is HTML.
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

  // What is shown once is not there when the browser keeps the page and comes back to it.
  addEventListener("pagehide", () => document.querySelectorAll("[data-once]").forEach((each) => each.replaceChildren()));
  const copy = document.querySelector("[data-copy]");
  if (copy && navigator.clipboard) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      const said = document.getElementById("copied");
      try {
        await navigator.clipboard.writeText(document.getElementById(copy.dataset.copy).textContent);
        said.textContent = "Copied.";
      } catch {
        said.textContent = "The browser does not allow that: select it, and copy it yourself.";
      }
    });
  }

  const form = document.getElementById("call");
  if (!form) return;
  const byId = (id) => document.getElementById(id);
  let stopped = null;

  byId("example").addEventListener("change", (event) => {
    byId("body").value = event.target.selectedOptions[0].dataset.body;
  });
  byId("stop").addEventListener("click", () => stopped && stopped.abort());

  async function send(side, version, name) {
    const section = byId(`${side}-answer`);
    const [status, answer] = [section.querySelector("p"), section.querySelector("pre")];
    section.hidden = false;
    byId(`${side}-title`).textContent = name;
    status.textContent = "Sent, waiting for the answer";
    answer.textContent = "";
    const began = performance.now();
    const passed = () => `${Math.round(performance.now() - began)} ms`;
    try {
      const response = await fetch(`${form.getAttribute("action")}?version=${encodeURIComponent(version)}`, {
        method: "POST",
        body: byId("body").value,
        signal: stopped.signal,
        headers: {
          "content-type": "application/json",
          accept: "application/json, text/event-stream",
          "x-podium-token": form.dataset.token,
          ...JSON.parse(byId("example").selectedOptions[0].dataset.headers),
        },
      });
      const by = response.headers.get("x-podium-deployment-id");
      const head = `HTTP ${response.status}${by ? ` from ${by}` : ""}`;
      status.textContent = `${head}, streaming`;
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        answer.append(part.value);
        answer.scrollTop = answer.scrollHeight;
      }
      status.textContent = `${head}, complete after ${passed()}`;
    } catch (error) {
      status.textContent = error.name === "AbortError" ? `Stopped after ${passed()}` : `The answer broke off after ${passed()}`;
    }
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (stopped) stopped.abort();
    const mine = (stopped = new AbortController());
    const [left, right] = [byId("left"), byId("right")];
    byId("right-answer").hidden = !right.value;
    byId("stop").hidden = false;
    const calls = [send("left", left.value, left.selectedOptions[0].text)];
    if (right.value) calls.push(send("right", right.value, right.value));
    await Promise.all(calls);
    if (stopped === mine) byId("stop").hidden = true;
  });
})();
