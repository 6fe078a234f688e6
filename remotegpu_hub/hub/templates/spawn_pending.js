"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const facts = find("rg-pending").dataset;
  const message = find("progress-message");
  let ended = false;

  function show(event) {
    if (event.progress !== undefined) {
      find("progress-bar").style.width = `${event.progress}%`;
      find("progress-track").setAttribute("aria-valuenow", event.progress);
    }
    if (event.html_message === undefined && event.message === undefined) return;
    const line = document.createElement("li");
    const at = document.createElement("time");
    const text = document.createElement("span");
    at.textContent = new Date().toLocaleTimeString(document.documentElement.lang, { hourCycle: "h23" });
    // The hub's own events carry links as html_message; ours escape every fact.
    if (event.html_message !== undefined) text.innerHTML = event.html_message;
    else text.textContent = event.message === "Server requested" ? facts.requested : event.message;
    line.append(at, text);
    find("progress-log").append(line);
    message.innerHTML = text.innerHTML;
  }

  const events = new EventSource(facts.progress);
  events.onmessage = (received) => {
    const event = JSON.parse(received.data);
    if (ended) return;
    show(event);
    if (event.ready) {
      ended = true;
      events.close();
      location.reload();
    } else if (event.failed) {
      ended = true;
      events.close();
      find("progress-bar").classList.add("bg-danger");
      message.classList.add("text-danger-emphasis");
      find("rg-cancel").hidden = true;
      find("rg-again").hidden = find("rg-home").hidden = false;
    }
  };
  events.onerror = () => {
    // The browser tries again by itself unless the hub has refused: then the page itself says what happened.
    if (!ended && events.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 2000);
  };

  find("rg-cancel").addEventListener("click", async () => {
    const button = find("rg-cancel");
    button.disabled = ended = true;
    events.close();
    show({ message: facts.cancelling });
    try {
      const answer = await fetch(facts.server, {
        method: "DELETE",
        headers: { "X-XSRFToken": window.jhdata.xsrf_token },
      });
      if (!answer.ok) throw new Error(answer.status);
      location.assign(find("rg-again").href);
    } catch (error) {
      show({ message: facts.notCancelled });
      setTimeout(() => location.reload(), 3000);
    }
  });
  window._jupyterhub_page_loaded = true;
})();
