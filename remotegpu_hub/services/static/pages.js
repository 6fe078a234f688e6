"use strict";
(() => {
  const EVERY = 10000, PATIENCE = 8000;
  const FORMAT = { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" };

  // Times: the server writes UTC, the reader has a zone of their own.
  function localTimes(part) {
    for (const time of part.querySelectorAll("time")) {
      const at = new Date(time.dateTime);
      if (isNaN(at)) continue;
      time.title = time.textContent;
      time.textContent = new Intl.DateTimeFormat(document.documentElement.lang, FORMAT).format(at);
    }
  }
  localTimes(document);

  for (const link of document.querySelectorAll("[data-language]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      document.cookie = `remotegpu_lang=${link.dataset.language}; path=/; max-age=31536000; samesite=lax`;
      location.reload();
    });
  }

  // On a phone the menus scroll: where the reader is stands in sight.
  for (const here of document.querySelectorAll(".rg-nav [aria-current]")) {
    const menu = here.closest("ul");
    menu.scrollLeft = here.offsetLeft - (menu.clientWidth - here.offsetWidth) / 2;
  }

  // After a refused form what is wrong stands at its field too.
  const { wrong } = document.getElementById("content").dataset;
  const sent = [...document.forms].find((form) => new URL(form.getAttribute("action"), location).pathname === location.pathname);
  const field = wrong && sent && sent.querySelector(`[name="${CSS.escape(wrong)}"]:not([type=hidden])`);
  if (field) {
    const says = document.createElement("div");
    says.id = "says-wrong";
    says.className = "invalid-feedback d-block";
    says.textContent = document.querySelector(".alert-danger").textContent;
    (field.closest(".input-group") || field).after(says);
    field.classList.add("is-invalid");
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", `${says.id} ${field.getAttribute("aria-describedby") || ""}`.trim());
    field.focus({ preventScroll: true });
    field.scrollIntoView({ block: "center" }); // and what is said below it
  }

  // One question open at a time; Escape closes it.
  document.addEventListener("toggle", (event) => {
    if (!event.target.matches || !event.target.matches(".rg-ask") || !event.target.open) return;
    for (const other of document.querySelectorAll(".rg-ask[open]")) if (other !== event.target) other.open = false;
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const open of document.querySelectorAll(".rg-ask[open]")) {
      open.open = false;
      open.querySelector("summary").focus();
    }
  });
  // A form is sent once.
  document.addEventListener("submit", (event) => {
    for (const button of event.target.querySelectorAll("button")) button.disabled = true;
  });

  // What lives is renewed where it has changed, unless somebody is answering a question in it, or types.
  const live = document.querySelector("[data-live]");
  if (!live) return;
  const lost = document.getElementById("lost");
  const here = new URL(live.dataset.live || location.href, location.href); // after a refused form the address is the form's
  here.searchParams.delete("told");
  let served = live.innerHTML, asking = false;
  const taken = () => live.querySelector(".rg-ask[open], input:focus");
  async function renew() {
    if (asking || document.hidden || taken()) return;
    asking = true;
    try {
      // The hub takes a cookie from a script only together with the page's own token.
      const headers = { "X-XSRFToken": document.querySelector("meta[name=xsrf]").content };
      const answer = await fetch(here, { headers, signal: AbortSignal.timeout(PATIENCE), redirect: "manual" });
      document.getElementById("gone").hidden = answer.type !== "opaqueredirect"; // to the hub's login
      if (answer.type === "opaqueredirect") {
        lost.hidden = true;
        return;
      }
      if (!answer.ok) throw new Error(answer.status);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.querySelector("[data-live]");
      lost.hidden = true;
      if (fresh && fresh.innerHTML !== served && !taken()) {
        served = fresh.innerHTML;
        const focus = live.contains(document.activeElement) ? [...live.querySelectorAll("a, button, summary")].indexOf(document.activeElement) : -1;
        live.innerHTML = served;
        localTimes(live);
        document.dispatchEvent(new Event("renewed"));
        if (focus >= 0) [...live.querySelectorAll("a, button, summary")][focus]?.focus();
      }
    } catch {
      lost.hidden = false;
    } finally {
      asking = false;
    }
  }

  // What happens is told by a stream, where the page has one; then the clock is only for what changes by itself. It is
  // read by fetch, since an EventSource cannot send the page's token. Nobody listens for a page that nobody sees.
  const SILENCE = 22000, MOST_PAUSE = 60000;
  let listening = false, after = "", pause = 1000, again = 0, soon = 0, ear = null, rounds = 0;
  function news() {
    clearTimeout(soon);
    soon = setTimeout(renew, 200);
  }
  async function listen() {
    clearTimeout(again);
    if (!live.dataset.events || ear || document.hidden) return;
    const own = ear = new AbortController();
    let silence = 0;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => own.abort(), SILENCE);
    };
    try {
      heard();
      const headers = { Accept: "text/event-stream", "X-XSRFToken": document.querySelector("meta[name=xsrf]").content };
      if (after) headers["Last-Event-ID"] = after;
      const answer = await fetch(live.dataset.events, { headers, signal: own.signal, redirect: "error" });
      if (!answer.ok) throw new Error(answer.status);
      listening = true;
      if (!lost.hidden) news();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; ; ) {
        const { value, done } = await reader.read();
        if (done) break;
        heard();
        pause = 1000;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          if (line.startsWith("id: ")) after = line.slice(4);
          else if (line.startsWith("data: ")) news();
        }
      }
    } catch {
      pause = Math.min(2 * pause, MOST_PAUSE);
    } finally {
      clearTimeout(silence);
      if (ear === own) ear = null;
      listening = false;
      if (!document.hidden) {
        news();
        again = setTimeout(listen, pause * (0.5 + Math.random()));
      }
    }
  }
  listen();
  // Without a stream, what starts or stops is still looked at often; what rests is not worth it.
  setInterval(() => {
    const often = !live.dataset.events || (!listening && (!lost.hidden || live.querySelector(".rg-dot.idle")));
    if (often || ++rounds % 3 === 0) renew();
  }, EVERY);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) ear?.abort();
    else listen();
    renew();
  });
  addEventListener("offline", () => ear?.abort());
  addEventListener("online", () => {
    pause = 1000;
    renew();
    listen();
  });
})();
