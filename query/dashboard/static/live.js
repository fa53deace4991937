/** Live rows by server-sent events, read by fetch so that the key goes in a header. Reconnects by itself. */

import { address, problemOf } from "./api.js";
import { parseExact } from "./exact.js";
import * as session from "./session.js";

const SILENT_MS = 20_000;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;
// A connection that ends sooner than this is no success: the next one waits longer.
const STEADY_MS = 10_000;

/**
 * @typedef {"off" | "connecting" | "live" | "behind" | "ended"} State
 * @typedef {{state: State, detail: string, at: number}} Status
 */

export class LiveStream {
  /** @param {(rows: any[]) => void} onRows @param {(status: Status) => void} onStatus */
  constructor(onRows, onStatus) {
    this.onRows = onRows;
    this.onStatus = onStatus;
    this.key = "";
    this.lastId = "";
    /** @type {AbortController | null} */
    this.aborter = null;
    /** @type {Status} */
    this.status = { state: "off", detail: "", at: 0 };
  }

  /** Follow a question; null: none. @param {import("./api.js").Query | null} query */
  follow(query) {
    const key = query ? JSON.stringify(query) : "";
    if (key === this.key) return;
    this.key = key;
    this.lastId = "";
    this.aborter?.abort();
    this.aborter = null;
    if (query) {
      this.aborter = new AbortController();
      this.run(query, this.aborter.signal);
    } else {
      this.say("off", "");
    }
  }

  /** @param {State} state @param {string} detail */
  say(state, detail) {
    this.status = { state, detail, at: Date.now() };
    this.onStatus(this.status);
  }

  /** @param {import("./api.js").Query} query @param {AbortSignal} signal */
  async run(query, signal) {
    let wait = FIRST_WAIT_MS;
    while (!signal.aborted) {
      if (this.status.state !== "behind") this.say("connecting", "");
      const began = Date.now();
      try {
        const outcome = await this.read(query, signal);
        if (outcome === "ended") return;
      } catch (error) {
        if (signal.aborted) return;
        this.say("behind", `no connection (${error instanceof Error ? error.message : error}); trying again`);
      }
      if (Date.now() - began >= STEADY_MS) wait = FIRST_WAIT_MS;
      await new Promise((resolve) => setTimeout(resolve, wait * (0.75 + Math.random() / 2)));
      wait = Math.min(wait * 2, LONGEST_WAIT_MS);
    }
  }

  /** Read one connection to its end. @param {import("./api.js").Query} query @param {AbortSignal} signal */
  async read(query, signal) {
    const timed = new AbortController();
    const abort = () => timed.abort();
    signal.addEventListener("abort", abort);
    let timer = setTimeout(abort, SILENT_MS);
    try {
      const headers = { Accept: "text/event-stream", Authorization: `Bearer ${session.key()}`, ...(this.lastId ? { "Last-Event-ID": this.lastId } : {}) };
      const response = await fetch(address("v1/stream", query), { headers, signal: timed.signal, cache: "no-store" });
      if (!response.ok || !response.body) return await this.refused(response);
      this.say("live", "");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let buffer = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return "closed";
        clearTimeout(timer);
        timer = setTimeout(abort, SILENT_MS);
        buffer += value;
        const events = buffer.split(/\r\n\r\n|\n\n|\r\r/);
        buffer = events.pop() ?? "";
        for (const event of events) this.take(event);
      }
    } catch (error) {
      if (timed.signal.aborted && !signal.aborted) throw new Error(`silent for ${SILENT_MS / 1000} s`);
      throw error;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", abort);
    }
  }

  /** @param {Response} response */
  async refused(response) {
    const problem = await problemOf(response);
    if (problem.status === 429 || problem.status >= 500) throw problem;
    this.say("ended", problem.message);
    return "ended";
  }

  /** @param {string} text of one event */
  take(text) {
    let name = "message";
    /** @type {string[]} */
    const data = [];
    for (const line of text.split(/\r\n|\n|\r/)) {
      if (line.startsWith("event:")) name = line.slice(6).trim();
      else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      else if (line.startsWith("id:")) this.lastId = line.slice(3).trim();
    }
    if (name === "message" && data.length) {
      if (this.status.state !== "live") this.say("live", "");
      this.onRows(parseExact(data.join("\n")));
    } else if (name === "problem") {
      this.say("behind", data.join(" "));
    }
  }
}
