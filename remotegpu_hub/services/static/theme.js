"use strict";
// The hub's own choice of light and dark, before anything is painted.
{
  const kept = localStorage.getItem("jupyterhub-bs-theme");
  const dark = kept && kept !== "auto" ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.setAttribute("data-bs-theme", dark ? "dark" : "light");
}
