"use strict";
// What all pages share: asking the service, the theme's button, signing out.
(() => {
  const TIMEOUT = 15000;

  /** What a call answered with an error; status 0: no answer came at all. */
  class CallError extends Error {
    constructor(status, message) {
      super(message);
      this.status = status;
    }

    /** Whether the same call may pass later. */
    get passing() {
      return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
    }
  }

  async function call(path, body, options = {}) {
    let response;
    try {
      response = await fetch(path, {
        method: "POST",
        headers: { "content-type": "application/json", "x-csrf-token": document.body.dataset.csrf || "" },
        body: JSON.stringify(body),
        signal: options.keepalive ? undefined : AbortSignal.timeout(TIMEOUT),
        ...options,
      });
    } catch (error) {
      throw new CallError(0, String(error));
    }
    if (!response.ok) {
      const told = await response.json().catch(() => ({}));
      throw new CallError(response.status, (told.error && told.error.message) || response.statusText);
    }
    return response.status === 204 ? null : response.json().catch((error) => { throw new CallError(0, String(error)); });
  }

  /** What was kept to go on without a connection; answers that were not sent stay. */
  async function forget() {
    try {
      sessionStorage.clear();
      if (window.caches) await caches.delete("trimtab-label");
    } catch { /* a browser that keeps nothing */ }
  }

  window.trimtab = { call, CallError };

  document.addEventListener("DOMContentLoaded", () => {
    const theme = document.getElementById("theme");
    if (theme) theme.addEventListener("click", window.trimtabTheme);
    const leave = document.getElementById("sign-out");
    if (leave) {
      leave.addEventListener("click", async () => {
        try { await call("/api/sign-out", {}); } catch { /* gone already */ }
        await forget();
        location.replace("/join");
      });
    }
    for (const form of document.querySelectorAll("form[data-on-change]")) {
      form.addEventListener("change", () => form.requestSubmit());
    }
  });
})();
