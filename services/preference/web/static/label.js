"use strict";
// The annotator's page: which task is shown, what keys and buttons say about it, undo, time, progress.
//
//   tasks ahead ─▶ shown ─▶ answered ─▶ queue.js ─▶ service
//      ▲             ▲────── undo ────────┘
//      └── asked for when few are left, and again to renew the lease of whoever is at work
//
// What is held outlives a reload of this tab: label-worker.js gives the page where there is no connection.
document.addEventListener("DOMContentLoaded", () => {
  const { call, AnswerQueue } = window.trimtab;
  const page = document.body.dataset;
  const AHEAD = Number(page.ahead);
  const UNDO_SECONDS = Number(page.undoSeconds);
  const KEPT = 20; // answers that can be undone here
  const ACTIVE_SECONDS = 90;
  const RENEWAL_SECONDS = 5; // from one asking for more time to the next
  const SEEN_SECONDS = 90; // a tab in the background speaks once a minute
  const TAB = `trimtab-tab:${encodeURIComponent(page.annotator)}/`;
  const tab = TAB + crypto.getRandomValues(new Uint32Array(2)).join("");
  const WORKER = "/label-worker.js"; // the one script that the policy below gives an address of
  const find = (id) => document.getElementById(id);
  const policy = window.trustedTypes
    ? window.trustedTypes.createPolicy("trimtab", { createHTML: (html) => html, createScriptURL: () => WORKER })
    : { createHTML: (html) => html, createScriptURL: () => WORKER };

  const state = {
    units: [], // held, not shown yet
    shown: null,
    order: [], // of a ranking: groups of answers, best first
    tie: false, // the next one shares the last place
    confidence: null,
    plain: false,
    answered: new Set(),
    history: kept("history") || [],
    since: 0, // when the shown one appeared, by the clock that never steps back
    skew: 0, // the service's clock minus ours, seconds
    active: Date.now(),
    asking: false,
    asked: 0, // when, by the clock that never steps back
    spoke: -Infinity, // when this tab was last heard of, by that clock
    away: false, // nobody was at work when time was over
    progress: null,
    done: 0,
    changes: 0, // answers and undos since this page began
    keys: setting("keys") !== "off",
  };

  const queue = new AnswerQueue({
    key: `trimtab-answers:${encodeURIComponent(page.annotator)}`,
    send: async (answers) => (await call("/api/answers", { answers })).outcomes,
    changed: connection,
    told: (outcome) => {
      if (outcome.refused) (outcome.withdrawn ? stands : refused)(outcome);
      else if (outcome.overtaken) overtaken(outcome);
    },
  });

  // ---------------------------------------------------------------- tasks

  async function ask() {
    if (state.asking) return;
    state.asking = true;
    state.asked = performance.now();
    let failed = false;
    const [before, still] = [state.changes, !queue.all().length];
    try {
      const answer = await call("/api/tasks", { limit: Math.min(50, AHEAD + queue.units().size) });
      state.skew = answer.now - Date.now() / 1000;
      state.away = false;
      for (const unit of answer.units) unit.lease = unit.until - answer.now;
      take(answer.units);
      // Counted there and here: only while nothing is on its way do both mean the same.
      if (!state.progress || (still && state.changes === before)) state.done = answer.progress.done + queue.units().size;
      state.progress = answer.progress;
    } catch (error) {
      failed = true;
      if (error.stopped) connection("stopped", queue.all().length);
      else if (!state.shown && !reheld()) {
        const why = error.status === 429 ? "Too many requests for now." : "No connection.";
        waiting(`${why} What you answered is kept here; this page tries again.`);
      }
    } finally {
      state.asking = false;
    }
    if (!state.shown && (!failed || state.units.length)) next();
    hold();
    progress();
  }

  // A page that was loaded without a connection goes on with what this tab held before.
  function reheld() {
    const held = kept("held");
    if (!held || state.units.length || state.progress) return state.units.length > 0;
    const pending = queue.units();
    state.units = held.units.filter((unit) => !pending.has(unit.unit));
    Object.assign(state, { done: held.done, progress: held.progress, skew: held.skew });
    return state.units.length > 0;
  }

  function hold() {
    const { units, shown, done, progress: all, skew } = state;
    if (all) keepHere("held", { units: shown ? [shown, ...units] : units, done, progress: all, skew });
  }

  function take(units) {
    const pending = queue.units();
    const given = new Map(units.map((unit) => [unit.unit, unit]));
    const mine = state.units.filter((unit) => given.has(unit.unit) || queue.all().length);
    for (const unit of state.shown ? [...mine, state.shown] : mine) {
      const again = given.get(unit.unit);
      if (again) Object.assign(unit, { until: again.until, lease: again.lease, revision: again.revision });
      given.delete(unit.unit);
    }
    const fresh = [...given.values()].filter((unit) => !pending.has(unit.unit) && !state.answered.has(unit.unit));
    state.units = [...mine, ...fresh];
  }

  // Asks for nothing itself: asking ends here, and where there is nothing it would begin again at once.
  function next() {
    const unit = state.units.shift();
    if (unit) show(unit);
    else if (state.asking) waiting("Looking for the next task …");
    else nothing();
  }

  function nothing() {
    state.shown = null;
    waiting(queue.all().length ? "" : "All done for now. New tasks appear here by themselves.");
  }

  function waiting(text) {
    find("task").hidden = find("actions").hidden = true;
    find("empty").hidden = false;
    if (text) find("empty-text").textContent = text;
    find("timer").textContent = "";
  }

  // ---------------------------------------------------------------- showing

  function show(unit, answer) {
    state.shown = unit;
    state.order = [];
    state.tie = false;
    state.since = performance.now();
    find("empty").hidden = true;
    find("task").hidden = find("actions").hidden = false;
    find("prompt-text").replaceChildren(...unit.prompt.map(turn));
    const ranking = unit.kind === "ranking";
    const answers = find("answers");
    answers.classList.toggle("many", ranking);
    answers.replaceChildren(...unit.answers.map((text, index) => card(text, index, ranking)));
    find("pair-keys").hidden = ranking;
    find("ranking-keys").hidden = !ranking;
    find("comment").value = answer ? answer.comment : "";
    confide(answer ? answer.confidence : null);
    ranks();
    undoable();
    scrollTo(0, 0);
    find("prompt").scrollTop = 0;
    find("prompt-title").focus({ preventScroll: true });
    tick();
  }

  function turn({ role, html }) {
    const part = element("div", "turn");
    if (state.shown.prompt.length > 1 || role !== "user") part.append(element("div", "role", role));
    part.append(prose(html));
    return part;
  }

  function card(answer, index, ranking) {
    const part = element("article", "answer card");
    const title = element("h3", "", ranking ? `Answer ${index + 1}` : `Answer ${"AB"[index]}`);
    title.id = `answer-${index}`;
    part.setAttribute("aria-labelledby", title.id);
    const head = element("header");
    head.append(title);
    if (ranking) {
      const place = element("button", "place", "Place next");
      place.type = "button";
      place.addEventListener("click", () => put(index));
      place.setAttribute("aria-keyshortcuts", String(index + 1));
      place.setAttribute("aria-describedby", title.id);
      const key = element("kbd", "", String(index + 1));
      key.setAttribute("aria-hidden", "true");
      head.append(key);
      head.append(place);
    }
    part.append(head, state.plain ? plain(answer.text) : prose(answer.html));
    return part;
  }

  // The one place where HTML from the service becomes nodes: it is Markdown that the service rendered and sanitised.
  function prose(html) {
    const part = element("div", "prose");
    part.innerHTML = policy.createHTML(html);
    return part.textContent.trim() ? part : element("div", "prose empty-text", "(an empty answer)");
  }

  function plain(text) {
    return text.trim() ? element("div", "prose plain", text) : element("div", "prose empty-text", "(an empty answer)");
  }

  function element(name, classes = "", text = "") {
    const made = document.createElement(name);
    if (classes) made.className = classes;
    if (text) made.textContent = text;
    return made;
  }

  // ---------------------------------------------------------------- answering

  function answer(said) {
    if (!state.shown) return;
    const { unit, kind } = state.shown;
    const full = {
      unit,
      kind,
      revision: revision(state.shown),
      ranks: [],
      choice: null,
      confidence: state.confidence,
      comment: find("comment").value.trim(),
      seconds: Math.min((performance.now() - state.since) / 1000, 86400),
      ...said,
    };
    state.history = [...state.history, { unit: state.shown, answer: full, at: Date.now() }].slice(-KEPT);
    keep();
    state.answered.add(unit);
    count(1);
    queue.push(full);
    announce(`${spoken(full)}. ${state.done} answered.`);
    state.shown = null;
    next();
    if (state.units.length < AHEAD / 2) ask();
    hold();
    progress();
  }

  const pair = (first, second) => { if (state.shown && state.shown.kind === "pair") answer({ ranks: [first, second] }); };

  function spoken({ kind, ranks: places, choice }) {
    if (choice) return choice === "skip" ? "Skipped" : "Flagged";
    if (kind === "ranking") return "Ranking kept";
    return places[0] === places[1] ? "Tie" : `Answer ${places[0] < places[1] ? "A" : "B"} is better`;
  }

  function undo() {
    const last = state.history.at(-1);
    if (!last) return;
    const arrived = !queue.units().has(last.unit.unit);
    if (arrived && Date.now() - last.at > UNDO_SECONDS * 1000) return tooLate();
    state.history.pop();
    keep();
    if (!queue.drop(last.answer)) {
      queue.push({ unit: last.unit.unit, kind: last.unit.kind, revision: revision(last.unit), withdrawn: true });
    }
    state.answered.delete(last.unit.unit);
    count(-1);
    if (state.shown) state.units.unshift(state.shown);
    last.unit.until = null; // the service leases it anew, and tells until when
    show(last.unit, last.answer);
    announce("Undone. This task is yours again.");
    hold();
    progress();
  }

  // What was answered before is older still.
  function tooLate() {
    state.history = [];
    keep();
    undoable();
    notice(`An answer can be undone for ${Number((UNDO_SECONDS / 60).toFixed(1))} minutes. This one stands.`);
  }

  // The service keeps an answer that was undone here: it is as it was, and its task is not asked again.
  function stands({ unit, refused: why }) {
    notice(`Not undone: ${why}.`);
    count(1);
    state.answered.add(unit);
    state.units = state.units.filter((one) => one.unit !== unit);
    if (state.shown && state.shown.unit === unit) {
      state.shown = null;
      next();
    }
    hold();
    progress();
  }

  // Another device took it back, later by its clock: the task is open still.
  function overtaken({ unit }) {
    state.answered.delete(unit);
    refused({ unit, refused: "it was taken back on another device, and is asked again" });
  }

  // What the service will not take is not asked again; whoever answered should know.
  function refused({ unit, refused: why }) {
    notice(`One answer was not kept: ${why}.`);
    count(-1);
    progress();
    state.history = state.history.filter((one) => one.unit.unit !== unit);
    keep();
    undoable();
  }

  // ---------------------------------------------------------------- ranking

  function put(index) {
    const { shown, order } = state;
    if (!shown || shown.kind !== "ranking" || index >= shown.answers.length) return;
    if (order.flat().includes(index)) {
      state.order = order.map((group) => group.filter((one) => one !== index)).filter((group) => group.length);
    } else if (state.tie && order.length) {
      order.at(-1).push(index);
    } else {
      order.push([index]);
    }
    state.tie = false;
    const left = shown.answers.map((_, one) => one).filter((one) => !state.order.flat().includes(one));
    // Where one is left, its place is clear.
    if (left.length === 1 && !order.flat().includes(left[0]) && state.order.flat().includes(index)) state.order.push(left);
    ranks();
    announce(`Order: ${ordered()}${complete() ? ". Enter keeps it." : ""}`);
  }

  function tie() {
    if (!state.order.length) return;
    state.tie = !state.tie;
    ranks();
    announce(state.tie ? "The next one shares the last place." : "The next one gets a place of its own.");
  }

  function back() {
    const last = state.order.at(-1);
    if (!last) return;
    last.pop();
    if (!last.length) state.order.pop();
    ranks();
    announce(`Taken out. ${state.order.length ? `Order: ${ordered()}` : "No answer has a place."}`);
  }

  const complete = () => state.shown && state.order.flat().length === state.shown.answers.length;
  const ordered = () => state.order.map((group) => group.map((one) => one + 1).join(" = ")).join(", ");

  function rank() {
    if (!state.shown || state.shown.kind !== "ranking" || !complete()) return;
    const places = state.shown.answers.map((_, index) => state.order.findIndex((group) => group.includes(index)) + 1);
    answer({ ranks: places });
  }

  function ranks() {
    const ranking = state.shown && state.shown.kind === "ranking";
    if (!ranking) return;
    find("order").textContent = state.order.length ? `Best first: ${ordered()}` : "Name the best answer first";
    find("rank").disabled = !complete();
    find("same").setAttribute("aria-pressed", String(state.tie));
    find("same").disabled = !state.order.length || complete();
    [...find("answers").children].forEach((part, index) => {
      const place = state.order.findIndex((group) => group.includes(index)) + 1;
      part.classList.toggle("placed", place > 0);
      const button = part.querySelector(".place");
      button.textContent = place ? `Place ${place}` : "Place next";
      button.setAttribute("aria-pressed", String(place > 0));
    });
  }

  // ---------------------------------------------------------------- what stands around

  function confide(value) {
    state.confidence = value;
    for (const button of document.querySelectorAll("[data-confidence]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.confidence) === value));
    }
  }

  function toggle(value) {
    confide(state.confidence === value ? null : value);
    const pressed = document.querySelector('[data-confidence][aria-pressed="true"]');
    announce(pressed ? `How sure: ${pressed.textContent}` : "How sure: not said");
  }

  function source() {
    state.plain = !state.plain;
    find("source").setAttribute("aria-pressed", String(state.plain));
    announce(state.plain ? "Texts as they are." : "Texts with formatting.");
    if (!state.shown) return;
    [...find("answers").children].forEach((part, index) => {
      const text = state.shown.answers[index];
      part.querySelector(".prose").replaceWith(state.plain ? plain(text.text) : prose(text.html));
    });
  }

  function count(more) {
    state.done += more;
    state.changes += 1;
  }

  function progress() {
    find("done").textContent = String(state.done);
    if (!state.progress) return;
    const { open, total } = state.progress;
    find("meter").max = Math.max(total, 1);
    find("meter").value = total - open;
    find("open").textContent = `${total - open} of ${total} pairs in all`;
  }

  function connection(kind, waitingAnswers) {
    const pill = find("connection");
    const texts = {
      saved: "All saved",
      sending: "Saving …",
      offline: waitingAnswers ? `Offline: ${waitingAnswers} kept here` : "Offline",
      stopped: "Signed out: open your link again",
    };
    if (pill.textContent !== texts[kind]) pill.textContent = texts[kind];
    pill.className = `pill ${{ offline: "waiting", stopped: "stopped" }[kind] || ""}`;
    if (kind === "saved" && !state.shown) ask();
  }

  function tick() {
    seen();
    const unit = state.shown;
    const timer = find("timer");
    if (!unit) {
      timer.textContent = "";
      return;
    }
    const left = (unit.until || 0) - (Date.now() / 1000 + state.skew);
    const busy = Date.now() - state.active < ACTIVE_SECONDS * 1000;
    const due = performance.now() - state.asked > Math.min(RENEWAL_SECONDS, unit.lease / 4) * 1000;
    if (left < Math.min(60, unit.lease / 4) && busy && due) ask(); // who is at work keeps the task
    if (!unit.until) { // undone a moment ago
      timer.textContent = "";
      return;
    }
    if (left <= 0 && navigator.onLine && !busy) return over();
    const seconds = Math.max(0, Math.ceil(left));
    timer.textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")} left`;
    timer.classList.toggle("soon", seconds < 60);
  }

  // Nobody was at work: the task goes back, and others may have it.
  function over() {
    state.units = [];
    state.shown = null;
    state.away = true;
    waiting("Time for this task was over, and it went back. Press any key to go on.");
    announce("Time for this task was over, and it went back.");
  }

  // Of one that was undone a moment ago, at the latest: nobody told yet.
  const ends = (unit) => unit.until || Date.now() / 1000 + state.skew + unit.lease;

  function undoable() {
    find("undo").disabled = !state.history.length;
  }

  function notice(text) {
    find("notice-text").textContent = text;
    find("notice").hidden = false;
  }

  function announce(text) {
    find("status").textContent = text;
  }

  // Above all that this browser said, and what another device took back: its clock may be ahead of this one.
  function revision(unit) {
    const made = Math.max(Date.now(), Number(setting("revision") || 0) + 1, (unit.revision || 0) + 1);
    setting("revision", made);
    return made;
  }

  function setting(name, value) {
    try {
      if (value !== undefined) localStorage.setItem(`trimtab-${name}`, String(value));
      return localStorage.getItem(`trimtab-${name}`);
    } catch {
      return null;
    }
  }

  function keep() {
    keepHere("history", state.history);
  }

  // All tabs of a person hold the same tasks: the last one to go gives them back.
  function seen() {
    if (performance.now() - state.spoke < SEEN_SECONDS * 100) return;
    state.spoke = performance.now();
    stored(() => localStorage.setItem(tab, String(Date.now())));
  }

  function others() {
    return stored(() => {
      localStorage.removeItem(tab);
      const times = Object.keys(localStorage).filter((name) => name.startsWith(TAB)).map((name) => {
        const ago = Date.now() - Number(localStorage.getItem(name));
        if (ago > SEEN_SECONDS * 1000) localStorage.removeItem(name);
        return ago;
      });
      return times.some((ago) => ago <= SEEN_SECONDS * 1000);
    });
  }

  function stored(work) {
    try {
      return work();
    } catch { /* a browser that keeps nothing */ }
  }

  // In this tab, until it is closed or its reader signs out (common.js).
  function kept(name) {
    try {
      return JSON.parse(sessionStorage.getItem(`trimtab-${name}:${page.annotator}`));
    } catch {
      return null;
    }
  }

  function keepHere(name, value) {
    try {
      sessionStorage.setItem(`trimtab-${name}:${page.annotator}`, JSON.stringify(value));
    } catch { // full: then it lives as long as this page, and what was kept before is not taken for it
      stored(() => sessionStorage.removeItem(`trimtab-${name}:${page.annotator}`));
    }
  }

  // ---------------------------------------------------------------- keys and buttons

  const help = find("help-dialog");
  const BUTTONS = {
    left: () => pair(1, 2),
    right: () => pair(2, 1),
    equal: () => pair(1, 1),
    skip: () => answer({ choice: "skip" }),
    flag: () => answer({ choice: "flag" }),
    undo,
    rank,
    same: tie,
    source,
    help: () => help.showModal(),
    "help-close": () => help.close(),
    "notice-close": () => { find("notice").hidden = true; },
  };
  const KEYS = {
    ArrowLeft: BUTTONS.left,
    ArrowRight: BUTTONS.right,
    t: BUTTONS.equal,
    0: BUTTONS.equal,
    s: BUTTONS.skip,
    f: BUTTONS.flag,
    u: undo,
    v: source,
    c: () => find("comment").focus(),
    q: () => toggle(0.33),
    w: () => toggle(0.67),
    e: () => toggle(1),
    "=": tie,
    Backspace: back,
    "?": BUTTONS.help,
    h: BUTTONS.help,
  };

  for (const [id, act] of Object.entries(BUTTONS)) find(id).addEventListener("click", act);
  for (const button of document.querySelectorAll("[data-confidence]")) {
    button.addEventListener("click", () => toggle(Number(button.dataset.confidence)));
  }
  find("keys").checked = state.keys;
  find("keys").addEventListener("change", (event) => {
    state.keys = event.target.checked;
    setting("keys", state.keys ? "on" : "off");
  });

  document.addEventListener("keydown", (event) => {
    const writing = event.target.closest("input, textarea, select");
    if (writing && event.key === "Escape") return writing.blur();
    if (writing || help.open || event.altKey || event.metaKey || !state.keys) return;
    const act = keyed(event);
    if (!act || (event.repeat && event.key !== "Backspace")) return;
    event.preventDefault();
    act();
  });

  function keyed(event) {
    if (event.ctrlKey) return event.key === "z" ? undo : null;
    if (event.key === "Enter") return event.target.closest("button, a, summary") ? null : rank;
    const ranking = state.shown && state.shown.kind === "ranking";
    if (ranking && /^[1-9]$/.test(event.key)) return () => put(Number(event.key) - 1);
    if (event.key === "1") return BUTTONS.left;
    if (event.key === "2") return BUTTONS.right;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    return Object.hasOwn(KEYS, key) ? KEYS[key] : null;
  }

  for (const kind of ["keydown", "pointerdown", "scroll", "pointermove"]) {
    document.addEventListener(kind, () => {
      state.active = Date.now();
      if (state.away) ask();
    }, { passive: true, capture: true });
  }
  // A page that goes gives back what it held; one that comes back asks again.
  window.addEventListener("pagehide", () => {
    const until = Math.max(0, ...[...state.units, state.shown].filter(Boolean).map(ends));
    if (!others() && until) call("/api/release", { until }, { keepalive: true }).catch(() => {});
  });
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  window.addEventListener("online", ask);
  setInterval(tick, 1000);
  setInterval(() => { if (!state.shown && !state.away && Date.now() - state.active < 600_000) ask(); }, 5000);

  // Over TLS and on this machine alone; elsewhere browsers have none, and a reload needs a connection.
  if (navigator.serviceWorker) {
    navigator.serviceWorker.register(policy.createScriptURL(WORKER), { scope: "/label" }).catch(() => {});
  }
  seen();
  undoable();
  queue.flush().then(ask);
});
