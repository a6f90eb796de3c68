"use strict";
// What all pages share: asking the service, the theme's button, signing out.
(() => {
  const TIMEOUT = 15000;

  /** What a call answered with an error; status 0: no answer came at all; code: the service's own word for it. */
  class CallError extends Error {
    constructor(status, message, code = "") {
      super(message);
      this.status = status;
      this.code = code;
    }

    /** Whether the same call may pass later: unless the service itself says that it never will. */
    get passing() {
      // What stands before the service answers 4xx too, while it is away: a 404 of an ingress says nothing of the call.
      return this.code !== "INVALID_ARGUMENT" && this.status !== 401 && this.status !== 403;
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
      const told = await response.json().catch(() => null);
      const { code, message } = (told && told.error) || {};
      throw new CallError(response.status, message || response.statusText, code);
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
