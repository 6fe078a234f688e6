"use strict";
(() => {
  const token = document.querySelector("meta[name=xsrf]").content;
  const find = document.getElementById("find");
  find.hidden = false;
  find.addEventListener("input", () => {
    const wanted = find.value.toLowerCase().split(/\s+/);
    for (const group of document.querySelectorAll("[data-group]")) {
      let some = false;
      for (const one of group.querySelectorAll("details")) {
        one.hidden = !wanted.every((word) => one.dataset.words.toLowerCase().includes(word));
        some ||= !one.hidden;
      }
      group.hidden = !some;
    }
  });

  for (const form of document.querySelectorAll("[data-send]")) {
    const button = form.querySelector("button"), place = form.querySelector(".rg-answer");
    button.disabled = false;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      event.stopPropagation();
      const headers = { "X-XSRFToken": token, Accept: "application/json" };
      const query = new URLSearchParams();
      let path = form.dataset.path, body;
      for (const field of form.querySelectorAll("[data-in]")) {
        const given = field.value.trim();
        if (field.dataset.in === "path") path = path.replace(`{${field.name}}`, encodeURIComponent(given));
        else if (field.dataset.in === "body") { body = field.value; headers["Content-Type"] = "application/json"; }
        else if (!given) continue;
        else if (field.dataset.in === "query") query.set(field.name, given);
        else headers[field.name] = given;
      }
      const address = path + (query.size ? `?${query}` : "");
      const [line, text] = [place.querySelector("p"), place.querySelector("pre")];
      button.disabled = true;
      place.hidden = false;
      line.textContent = `${form.dataset.send} ${address} …`;
      text.textContent = "";
      try {
        const answer = await fetch(address, { method: form.dataset.send, headers, body, redirect: "error" });
        const told = ["ETag", "X-Request-Id", "Retry-After"].filter((name) => answer.headers.get(name));
        line.textContent = `${answer.status} ${told.map((name) => `${name}: ${answer.headers.get(name)}`).join(" · ")}`;
        const said = await answer.text();
        try { text.textContent = JSON.stringify(JSON.parse(said), null, 2); } catch { text.textContent = said; }
      } catch (error) {
        line.textContent = String(error);
      } finally {
        button.disabled = false;
      }
    });
  }
})();
