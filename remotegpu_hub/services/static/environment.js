"use strict";
(() => {
  const MOST = 5000, AGAIN = 5000;

  function offerCopies() {
    for (const button of document.querySelectorAll("[data-copy]")) button.hidden = !navigator.clipboard;
  }
  offerCopies();
  document.addEventListener("renewed", offerCopies);
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = button.dataset.done;
  });

  // The log: each line as it comes, of the newest run. Whoever has scrolled up to read is left there.
  const log = document.querySelector("[data-log]");
  if (!log) return;
  const headers = { "X-XSRFToken": document.querySelector("meta[name=xsrf]").content };
  function add(text) {
    const below = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
    log.append(text);
    while (log.childNodes.length > MOST) log.firstChild.remove();
    if (below) log.scrollTop = log.scrollHeight;
  }
  async function follow() {
    const answer = await fetch(`${log.dataset.log}?follow=true&tail=500`, { headers, redirect: "error" });
    if (answer.status === 404 || answer.status === 409) {
      log.textContent = answer.status === 404 ? log.dataset.none : (await answer.json()).error.message;
      return answer.status === 409;
    }
    if (!answer.ok) throw new Error(answer.status);
    log.textContent = "";
    const lines = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await lines.read(); !part.done; part = await lines.read()) add(part.value);
    return false;
  }
  const newest = () => document.querySelector("[data-run]")?.dataset.run;
  let wake = () => {};
  document.addEventListener("renewed", () => wake());
  async function always() {
    for (let told = ""; ; ) {
      const run = newest();
      if (run && run !== told) {
        try {
          if (!(await follow())) told = run;
        } catch {
          add(`\n${log.dataset.lost}\n`);
        }
      }
      await new Promise((done) => {
        wake = done;
        setTimeout(done, AGAIN);
      });
    }
  }
  always();
})();
