"use strict";
(() => {
  const root = document.getElementById("rg-form");
  const form = root && root.closest("form");
  if (!form) return;
  const EVERY = 10000, DEBOUNCE = 250, ATTEMPT = 8000;
  const find = (id) => document.getElementById(id);
  const fields = (name) => [...form.elements].filter((field) => field.name === name);
  const chosen = (name) => fields(name).find((field) => field.checked);
  let version = 0, timer = 0, asked = null, last = Date.now(), done = false;

  // Times: the server writes the workspace's zone, the reader has his own.
  const FORMATS = {
    clock: { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23", timeZoneName: "short" },
    moment: { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23", timeZoneName: "short" },
  };
  function localTimes(part) {
    for (const time of part.querySelectorAll("time[data-rg-time]")) {
      const at = new Date(time.dateTime);
      if (isNaN(at)) continue;
      time.title = time.textContent;
      time.textContent = new Intl.DateTimeFormat(root.lang, FORMATS[time.dataset.rgTime]).format(at);
    }
  }

  function choice() {
    const said = {};
    for (const [name, value] of new FormData(form)) {
      if (typeof value === "string") (said[name] = said[name] || []).push(value);
    }
    return encodeURIComponent(JSON.stringify(said));
  }

  // Replace a live part where its HTML has changed; what was typed and what has the focus stay.
  const served = new Map();
  function swap(now, fresh) {
    for (const { name, value } of [...now.attributes]) {
      if (name.startsWith("data-") && !fresh.hasAttribute(name)) now.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) if (name.startsWith("data-")) now.setAttribute(name, value);
    const html = fresh.innerHTML;
    if (served.get(now.id) === html) {
      // What the server did not accept goes back to what it shows.
      for (const field of now.querySelectorAll("input[type=radio], input[type=checkbox]")) field.checked = field.defaultChecked;
      for (const option of now.querySelectorAll("option")) if (option.defaultSelected) option.selected = true;
      return;
    }
    const focus = now.contains(document.activeElement) ? document.activeElement : null;
    if (focus && focus.tagName === "SELECT") return;
    served.set(now.id, html);
    const typed = new Map([...now.querySelectorAll("input[type=search]")].map((field) => [field.id, field.value]));
    const key = focus && [focus.id, focus.name, focus.value];
    const open = [...now.querySelectorAll("details[open][id]")].map((details) => details.id);
    const top = now.scrollTop;
    now.innerHTML = html;
    now.scrollTop = top;
    localTimes(now);
    for (const id of open) if (find(id)) find(id).open = true;
    for (const [id, value] of typed) if (find(id)) find(id).value = value;
    if (key) {
      const same = (key[0] && find(key[0])) || fields(key[1]).find((field) => field.value === key[2]);
      if (same) same.focus({ preventScroll: true });
    }
  }

  function say(text) {
    const place = find("rg-say");
    if (place && place.textContent !== text) place.textContent = text;
  }

  function settle() {
    const quote = find("rg-quote");
    if (!quote) return;
    const start = form.querySelector("[data-rg-start]");
    const refused = quote.hasAttribute("data-rg-refused");
    start.setAttribute("aria-disabled", String(refused));
    if (refused) start.setAttribute("aria-describedby", "rg-quote");
    else start.removeAttribute("aria-describedby");
    search();
  }

  function state(name) {
    const clock = find("rg-clock");
    clock.querySelector(".rg-fresh").hidden = name !== "fresh";
    clock.querySelector(".rg-late").hidden = name !== "late";
    clock.querySelector(".rg-gone").hidden = name !== "gone";
  }

  async function renew() {
    clearTimeout(timer);
    if (done || document.hidden) return;
    const mine = version;
    if (asked) asked.abort();
    const asking = (asked = new AbortController());
    const limit = setTimeout(() => asking.abort(), ATTEMPT);
    try {
      const answer = await fetch(location.pathname, {
        headers: { "X-RemoteGPU-Choice": choice() },
        redirect: "manual",
        cache: "no-store",
        signal: asking.signal,
      });
      if (answer.type === "opaqueredirect" || answer.status === 403 || answer.status === 404) {
        done = true;
        state("gone");
        return;
      }
      if (!answer.ok) throw new Error(answer.status);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (mine !== version || asking !== asked) return;
      if (!page.getElementById("rg-form")) throw new Error("not the form");
      const before = find("rg-quote") && find("rg-quote").dataset.rgSay;
      for (const part of root.querySelectorAll("[data-live]")) {
        const fresh = page.getElementById(part.id);
        if (fresh) swap(part, fresh);
      }
      const quote = find("rg-quote");
      if (quote) {
        quote.classList.remove("rg-stale");
        if (quote.dataset.rgSay !== before) say(quote.dataset.rgSay);
      }
      last = Date.now();
      state("fresh");
      settle();
    } catch (error) {
      if (asking === asked && !done) state("late");
    } finally {
      clearTimeout(limit);
      if (asking === asked && !done) {
        clearTimeout(timer);
        timer = setTimeout(renew, mine === version ? EVERY : DEBOUNCE);
      }
    }
  }

  function changed() {
    version += 1;
    const quote = find("rg-quote");
    if (quote) quote.classList.add("rg-stale");
    clearTimeout(timer);
    timer = setTimeout(renew, DEBOUNCE);
  }

  function fill(flavor) {
    const { gpuModel, gpus, cpu, memory } = flavor.dataset;
    for (const field of fields("gpu_model")) field.checked = field.value === gpuModel;
    find("rg-count").value = gpus;
    find("rg-cpu").value = cpu;
    find("rg-memory").value = memory;
  }

  function search() {
    const box = find("rg-search");
    const wanted = box ? box.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
    let shown = 0;
    for (const card of document.querySelectorAll(".rg-image")) {
      const text = card.textContent.toLowerCase();
      const fits = wanted.every((word) => text.includes(word));
      card.hidden = !fits && !card.querySelector("input:checked");
      shown += fits;
    }
    if (find("rg-nothing")) find("rg-nothing").hidden = shown > 0;
  }

  const OWN = ["gpu_model", "gpus", "cpu", "memory_gib"];
  function react(event) {
    const field = event.target;
    if (field.id === "rg-search") return search();
    if (!field.name || field.name === "name") return;
    if (field.name === "flavor" && field.value) fill(field);
    if (OWN.includes(field.name)) {
      const own = fields("flavor").find((flavor) => flavor.value === "" && flavor.type === "radio");
      if (own) own.checked = true;
    }
    changed();
  }
  form.addEventListener("input", react);
  root.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.id === "rg-search") event.preventDefault();
  });
  root.addEventListener("click", (event) => {
    const step = event.target.closest("[data-rg-step]");
    if (step) {
      const count = find("rg-count");
      let next = (parseInt(count.value, 10) || 1) + Number(step.dataset.rgStep);
      if (!chosen("gpu_model") || chosen("gpu_model").value === "") {
        const model = fields("gpu_model").find((field) => field.value && !field.disabled);
        if (!model || next < 2) return;
        model.checked = true;
        next = 1;
      }
      count.value = Math.min(Math.max(next, Number(count.min)), Number(count.max));
      count.dispatchEvent(new Event("input", { bubbles: true }));
    }
    const link = event.target.closest("[data-rg-set-language]");
    if (link) {
      event.preventDefault();
      document.cookie = `remotegpu_lang=${link.dataset.rgSetLanguage}; path=/; max-age=31536000; samesite=lax`;
      location.assign(location.pathname);
    }
  });

  form.addEventListener("submit", (event) => {
    const start = form.querySelector("[data-rg-start]");
    if (start && start.getAttribute("aria-disabled") === "true") {
      event.preventDefault();
      const quote = find("rg-quote");
      say("");
      say(quote.dataset.rgSay);
      quote.scrollIntoView({ block: "nearest" });
      changed();
    } else if (form.classList.contains("rg-sent")) {
      event.preventDefault();
    } else {
      form.classList.add("rg-sent");
      done = true;
      clearTimeout(timer);
    }
  });
  window.addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    form.classList.remove("rg-sent");
    done = false;
    renew();
  });
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden && !done) timer = setTimeout(renew, Math.max(DEBOUNCE, last + EVERY - Date.now()));
  });

  for (const part of root.querySelectorAll("[data-live]")) served.set(part.id, part.innerHTML);
  localTimes(root);
  settle();
  timer = setTimeout(renew, EVERY);
  window._jupyterhub_page_loaded = true;
})();
