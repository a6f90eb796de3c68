"use strict";
// Owns answers on their way: kept in this browser until the service has them on disk, sent in order, again and again.
//
//   push ─▶ [localStorage] ─▶ send ─▶ acknowledged: gone │ no connection: again, later │ signed out: until the next page
//
// An answer may arrive twice; the service knows it again by unit and revision.
(() => {
  const WAITS = [1000, 2000, 4000, 8000, 15000];
  const BATCH = 20;

  class AnswerQueue {
    /** send(answers): a promise of their outcomes. changed(state, waiting), told(answer and outcome): for the page. */
    constructor({ key, send, changed, told }) {
      this.key = key;
      this.send = send;
      this.changed = changed;
      this.told = told;
      this.memory = null; // where there is no storage
      this.failures = 0;
      this.batch = BATCH;
      this.timer = 0;
      this.busy = false;
      window.addEventListener("online", () => this.flush());
      window.addEventListener("offline", () => this.say("offline"));
    }

    all() {
      if (this.memory) return this.memory;
      try {
        return JSON.parse(localStorage.getItem(this.key) || "[]");
      } catch {
        return [];
      }
    }

    save(answers) {
      try {
        if (!this.memory) {
          localStorage.setItem(this.key, JSON.stringify(answers));
          return;
        }
      } catch { /* full or forbidden: this page alone keeps them */ }
      this.memory = answers;
    }

    push(answer) {
      this.save([...this.all(), answer]);
      // Without a connection the next attempt has its time already: what never left can still be taken out.
      if (this.state === "offline") return this.say("offline");
      this.say("sending");
      this.flush();
    }

    /** Take an answer out that never left; false if it may have arrived. */
    drop(answer) {
      const all = this.all();
      const kept = all.filter((one) => one.tried || !same(one, answer));
      this.save(kept);
      return kept.length < all.length;
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
        this.save(this.all().map((one) => (batch.some((sent) => same(one, sent)) ? { ...one, tried: true } : one)));
        let outcomes;
        try {
          outcomes = await this.send(batch.map(({ tried, ...answer }) => answer));
        } catch (error) {
          if (!this.again(error, batch)) return;
          continue;
        }
        this.failures = 0;
        this.batch = BATCH;
        this.save(this.all().filter((one) => !batch.some((sent) => same(one, sent))));
        outcomes.forEach((outcome, at) => this.told({ ...batch[at], ...outcome }));
      }
    }

    /** Whether to go on at once after an error. */
    again(error, batch) {
      if (error.status === 413 && batch.length > 1) { // too much at once for what stands in between
        this.batch = 1;
        return true;
      }
      if (error.passing) {
        this.say("offline");
        this.timer = setTimeout(() => this.flush(), WAITS[Math.min(this.failures++, WAITS.length - 1)]);
        return false;
      }
      if (error.status === 401 || error.status === 403) {
        this.say("stopped");
        return false;
      }
      // One of them cannot be read: find it, and do not let it stop the others.
      if (batch.length === 1) {
        this.save(this.all().filter((one) => !same(one, batch[0])));
        this.told({ ...batch[0], new: 0, refused: error.message });
      }
      this.batch = 1;
      return true;
    }

    say(state) {
      this.state = state;
      this.changed(state, this.all().length);
    }
  }

  const same = (one, other) => one.unit === other.unit && one.revision === other.revision;
  window.trimtab.AnswerQueue = AnswerQueue;
})();
