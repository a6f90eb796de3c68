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

    // What stands before the service answers 4xx too, while it is away: a 404 of an ingress says nothing of the call.

    /** Whether the service itself says that whoever asks is not signed in, or not on this page. */
    get stopped() {
      return this.code === "UNAUTHENTICATED" || this.code === "PERMISSION_DENIED";
    }

    /** Whether the same call may pass later: unless the service itself says that it never will. */
    get passing() {
      return this.code !== "INVALID_ARGUMENT" && !this.stopped;
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

  async function signOut(button) {
    try {
      await call("/api/sign-out", {}).catch(again);
    } catch (error) {
      if (error.code !== "UNAUTHENTICATED") {
        button.title = `You are still signed in: ${error.message}`;
        button.setAttribute("aria-label", button.title);
        return window.alert(button.title);
      }
    }
    await forget();
    location.replace("/join");
  }

  /** A link that was opened in another tab began a session of its own, with another token than this page has. */
  async function again(error) {
    if (error.code !== "PERMISSION_DENIED") throw error;
    const page = await fetch(location.href).catch(() => { throw error; });
    if (new URL(page.url).pathname === "/join") return;
    const [, token] = (await page.text()).match(/ data-csrf="(\w+)"/) || [];
    if (token) document.body.dataset.csrf = token;
    await call("/api/sign-out", {});
  }

  window.trimtab = { call, CallError };

  document.addEventListener("DOMContentLoaded", () => {
    const theme = document.getElementById("theme");
    if (theme) theme.addEventListener("click", window.trimtabTheme);
    const leave = document.getElementById("sign-out");
    if (leave) {
      leave.addEventListener("click", () => signOut(leave));
    }
    for (const form of document.querySelectorAll("form[data-on-change]")) {
      form.addEventListener("change", () => form.requestSubmit());
    }
  });
})();
