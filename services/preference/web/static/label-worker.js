"use strict";
// The annotator's page without a connection: the last page that the service gave, and the files that it names.
// Owns no answer and no task (label.js and queue.js do), and touches no call: what is posted is never seen here.
//
//   /label    from the service, and kept; where no answer comes, or an ingress says that there is none, the kept one
//   /static/  kept: their address names their content
const CACHE = "trimtab-label";
const PAGE = "/label";
// Calls go past this worker: in Chromium, what passes through it ends with its page, as does the call of a page that goes.
const CALLS = { condition: { requestMethod: "POST" }, source: "network" };

self.addEventListener("install", (event) => {
  if (event.addRoutes) event.addRoutes(CALLS).catch(() => {}); // without it they pass through here unchanged
  // The page that registers this was loaded before there was anybody to keep it.
  event.waitUntil(fetch(PAGE).then(keep).then(() => self.skipWaiting()));
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== self.location.origin) return;
  if (request.mode === "navigate" && url.pathname === PAGE) event.respondWith(page(request));
  else if (url.pathname.startsWith("/static/")) event.respondWith(file(request));
});

async function page(request) {
  let response;
  try {
    response = await fetch(request);
  } catch (error) {
    const kept = await caches.match(PAGE);
    if (kept) return kept;
    throw error;
  }
  if (response.status >= 502) return (await caches.match(PAGE)) || response;
  await keep(response.clone()).catch(() => {}); // no room, or a file is missing: the page is there all the same
  return response;
}

async function file(request) {
  return (await caches.match(request)) || fetch(request);
}

/** Keep a page and its files; one that leads to the door, or is refused, means that whoever was here is signed out. */
async function keep(response) {
  if (!response.ok || response.redirected) {
    await caches.delete(CACHE);
    return;
  }
  const cache = await caches.open(CACHE);
  const files = new Set((await response.clone().text()).match(/\/static\/[\w.-]+\?\w+/g));
  const known = (await cache.keys()).map(({ url }) => url.slice(self.location.origin.length));
  await cache.addAll([...files].filter((name) => !known.includes(name)));
  await cache.put(PAGE, response);
  await Promise.all(known.filter((name) => name !== PAGE && !files.has(name)).map((name) => cache.delete(name)));
}
