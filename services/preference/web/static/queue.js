"use strict";
// Owns answers on their way: kept in this browser until the service has them on disk, sent in order, again and again.
//
//   push ─▶ [localStorage] ─▶ send ─▶ acknowledged: gone │ no connection: again, later │ signed out: until the next page
//
// An answer may arrive twice; the service knows it again by unit and revision.
(() => {
  const WAITS = [1000, 2000, 4000, 8000, 15000];
  const WITHOUT_NETWORK = 5000; // as far as the browser knows: a service on this machine is there all the same
  const BATCH = 20;

  class AnswerQueue {
    /** send(answers): a promise of their outcomes. changed(state, waiting), told(answer and outcome): for the page; an
     *  outcome is `overtaken` only by what this browser did not say itself. */
    constructor({ key, send, changed, told }) {
      this.key = key;
      this.send = send;
      this.changed = changed;
      this.told = told;
      this.memory = []; // what the storage does not take: full or forbidden
      this.failures = 0;
      this.batch = BATCH;
      this.timer = 0;
      this.busy = false;
      window.addEventListener("online", () => this.flush());
      window.addEventListener("offline", () => this.later(WITHOUT_NETWORK));
    }

    /** All that wait, of all tabs, in the order in which they were said. */
    all() {
      let names = [];
      try {
        names = Object.keys(localStorage).filter((name) => name.startsWith(`${this.key}/`));
      } catch { /* forbidden */ }
      const stored = names.map((name) => JSON.parse(localStorage.getItem(name)));
      const others = stored.filter((one) => one && !this.memory.some((newer) => same(one, newer)));
      return [...others, ...this.memory].sort((one, other) => one.revision - other.revision);
    }

    // Under a key of its own: of two tabs that write at the same moment neither writes over what the other does.
    keep(answer) {
      try {
        localStorage.setItem(this.name(answer), JSON.stringify(answer));
      } catch {
        this.memory = [...this.memory.filter((one) => !same(one, answer)), answer];
      }
    }

    forget(answer) {
      try {
        localStorage.removeItem(this.name(answer));
      } catch { /* it was never there */ }
      this.memory = this.memory.filter((one) => !same(one, answer));
    }

    name({ unit, revision }) {
      return `${this.key}/${revision}/${unit}`;
    }

    push(answer) {
      this.keep(answer);
      // Without a connection the next attempt has its time already: what never left can still be taken out.
      if (this.state === "offline") return this.say("offline");
      this.say("sending");
      this.flush();
    }

    /** Take an answer out that never left; false if it may have arrived. */
    drop(answer) {
      const waits = this.all().some((one) => !one.tried && same(one, answer));
      if (waits) this.forget(answer);
      return waits;
    }

    /** Units whose last word here is an answer. */
    units() {
      const last = new Map(this.all().map((one) => [one.unit, one]));
      return new Set([...last.values()].filter((one) => !one.withdrawn).map((one) => one.unit));
    }

    async flush() {
      clearTimeout(this.timer);
      if (this.busy) return;
      this.busy = true;
      try {
        // One page at a time, where several are open.
        if (navigator.locks) await navigator.locks.request(this.key, () => this.drain());
        else await this.drain();
      } finally {
        this.busy = false;
      }
    }

    async drain() {
      for (;;) {
        const batch = this.all().slice(0, this.batch);
        if (!batch.length) return this.say("saved");
        this.say("sending");
        for (const one of batch) this.keep({ ...one, tried: true });
        let outcomes;
        try {
          outcomes = await this.send(batch.map(({ tried, ...answer }) => answer));
        } catch (error) {
          if (!this.again(error, batch)) return;
          continue;
        }
        this.failures = 0;
        this.batch = BATCH;
        for (const one of batch) this.forget(one);
        outcomes.forEach((outcome, at) => this.told({ ...batch[at], ...outcome, overtaken: this.overtaken(batch, outcome) }));
      }
    }

    // Of an answer and its undo that come twice, since nobody heard the first time, the answer is overtaken by the undo.
    overtaken(batch, { unit, revision, overtaken }) {
      return overtaken && ![...batch, ...this.all()].some((one) => one.unit === unit && one.revision > revision);
    }

    /** Whether to go on at once after an error. */
    again(error, batch) {
      if (error.status === 413 && batch.length > 1) { // too much at once for what stands in between
        this.batch = 1;
        return true;
      }
      if (error.passing) {
        this.later(WAITS[Math.min(this.failures++, WAITS.length - 1)]);
        return false;
      }
      if (error.stopped) {
        this.say("stopped");
        return false;
      }
      // One of them cannot be read: find it, and do not let it stop the others.
      if (batch.length === 1) {
        this.forget(batch[0]);
        this.told({ ...batch[0], new: 0, refused: error.message });
      }
      this.batch = 1;
      return true;
    }

    later(milliseconds) {
      this.say("offline");
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.flush(), milliseconds);
    }

    say(state) {
      this.state = state;
      this.changed(state, this.all().length);
    }
  }

  const same = (one, other) => one.unit === other.unit && one.revision === other.revision;
  window.trimtab.AnswerQueue = AnswerQueue;
})();
