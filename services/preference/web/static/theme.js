"use strict";
// Light or dark before anything is drawn: as chosen here before, else as the system says.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => { try { return localStorage.getItem("trimtab-theme"); } catch { return null; } };
  const apply = () => { document.documentElement.dataset.theme = chosen() || (system.matches ? "dark" : "light"); };
  apply();
  system.addEventListener("change", apply);
  window.trimtabTheme = () => {
    const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("trimtab-theme", other); } catch { /* it holds for this page, then */ }
    document.documentElement.dataset.theme = other;
  };
})();
