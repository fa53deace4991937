/** The one store: what the user has chosen, which is in the address, and what the router has answered. */

import { getJson, Problem } from "./api.js";

/**
 * @typedef {{
 *   view: string, advertiser: string, range: string, from: string, to: string, grain: string, zone: string, compare: string,
 *   measure: string, second: string, dimension: string, by: string, search: string, date: string, month: string, filters: Record<string, string[]>,
 * }} Params
 */

/** @type {Params} */
export const DEFAULTS = {
  view: "overview", advertiser: "", range: "24h", from: "", to: "", grain: "auto", zone: "", compare: "previous",
  measure: "spend_micros", second: "", dimension: "campaign_id", by: "-spend_micros", search: "", date: "", month: "", filters: {},
};

/** @type {Params} */
export let params = structuredClone(DEFAULTS);

/**
 * A question that a panel shows. Its answer stays while a newer one is loaded: as `former` where it is one to another question, and
 * then it goes when this question cannot be answered. `at`: when it was last asked or answered; `valueAt`: when the answer came.
 * `waitMs`: for how long a router that refuses more requests is left alone.
 * @typedef {{
 *   key: string, value: any, valueAt: number, former: boolean, error: Problem | null, loading: boolean, at: number, waitMs: number,
 *   aborter: AbortController | null,
 * }} Entry
 */

const HOUR_MS = 3_600_000;
const LONGEST_WAIT_MS = 120_000;

/** @type {Map<string, Entry>} */
const entries = new Map();
let render = () => {};
let scheduled = false;

/** @param {() => void} callback called once before the next frame after a change */
export function onChange(callback) {
  render = callback;
}

/** What the page says of the last thing that was done. */
export let notice = "";

/** @param {string} text said on the page, until something else is */
export function announce(text) {
  notice = text;
  changed();
}

/** Have the page drawn again. */
export function changed() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    render();
  });
}

/** Take what the address says. */
export function readAddress() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const next = structuredClone(DEFAULTS);
  for (const [name, value] of fragment) {
    if (name === "filter") {
      const [dimension, ...values] = value.split(":");
      next.filters[dimension] = values.join(":").split(",");
    } else if (name !== "filters" && Object.hasOwn(next, name)) {
      /** @type {any} */ (next)[name] = value;
    }
  }
  params = next;
  changed();
}

/** The fragment of the address for some choices. @param {Params} choices */
export function fragmentOf(choices) {
  const fragment = new URLSearchParams();
  for (const [name, value] of Object.entries(choices)) {
    if (name === "filters") {
      for (const [dimension, values] of Object.entries(value)) fragment.append("filter", `${dimension}:${values.join(",")}`);
    } else if (value !== /** @type {any} */ (DEFAULTS)[name]) {
      fragment.set(name, String(value));
    }
  }
  return `#${fragment}`;
}

/** Choose something. @param {Partial<Params>} patch */
export function choose(patch) {
  history.pushState(null, "", addressOf(patch));
}

/** Choose something that is not a step to go back to, such as a letter of a search. @param {Partial<Params>} patch */
export function adjust(patch) {
  history.replaceState(null, "", addressOf(patch));
}

/** Take choices, and return the address of the page with them. @param {Partial<Params>} patch */
function addressOf(patch) {
  if (patch.view && patch.view !== params.view) notice = "";
  params = { ...params, ...patch };
  changed();
  return location.pathname + location.search + fragmentOf(params);
}

/** @param {string} dimension @param {string} value @param {boolean} on */
export function filter(dimension, value, on) {
  const filters = structuredClone(params.filters);
  const values = new Set(filters[dimension] ?? []);
  if (on) values.add(value);
  else values.delete(value);
  if (values.size) filters[dimension] = [...values];
  else delete filters[dimension];
  choose({ filters });
}

/**
 * The entry of a panel's question, which is asked now where it is new, or older than `everyMs`.
 * @param {string} name of the panel @param {string} path @param {import("./api.js").Query} query @param {number} everyMs 0: once
 * @returns {Entry}
 */
export function ask(name, path, query = {}, everyMs = 0) {
  const key = JSON.stringify([path, query]);
  let entry = entries.get(name);
  const stale = entry && everyMs > 0 && Date.now() - entry.at >= Math.max(everyMs, entry.waitMs) && !document.hidden;
  if (!entry || entry.key !== key || (stale && !entry.loading)) {
    if (entry && entry.key !== key) entry.aborter?.abort();
    const same = entry?.key === key;
    const value = entry?.value ?? null;
    entry = {
      key, value, valueAt: entry?.valueAt ?? 0, former: value !== null && !same && (entry?.former || !isLater(entry?.key ?? "", key)),
      error: same ? (entry?.error ?? null) : null, loading: true, at: Date.now(), waitMs: same ? (entry?.waitMs ?? 0) : 0, aborter: new AbortController(),
    };
    entries.set(name, entry);
    load(name, entry, path, query);
  }
  return entry;
}

/**
 * Whether a question is the former one a little later: only its range has moved on with the clock.
 * @param {string} former @param {string} key
 */
function isLater(former, key) {
  const [[formerPath, before], [path, now]] = [JSON.parse(former), JSON.parse(key)];
  const rest = (/** @type {any} */ query) => JSON.stringify({ ...query, start: "", end: "" });
  if (formerPath !== path || rest(before) !== rest(now)) return false;
  const [start, end] = ["start", "end"].map((name) => Date.parse(now[name]) - Date.parse(before[name]));
  return end > 0 && end <= HOUR_MS && (start === 0 || start === end);
}

/** @param {string} name @param {Entry} entry @param {string} path @param {import("./api.js").Query} query */
async function load(name, entry, path, query) {
  /** @type {Partial<Entry>} */
  let outcome;
  try {
    outcome = { value: await getJson(path, { query, signal: entry.aborter?.signal }), error: null, former: false, waitMs: 0 };
    outcome.valueAt = Date.now();
  } catch (error) {
    if (entry.aborter?.signal.aborted) return;
    const problem = error instanceof Problem ? error : new Problem(0, "broken", String(error));
    outcome = { error: problem, ...(entry.former ? { value: null, former: false } : {}) };
    if (problem.status === 429) outcome.waitMs = Math.min(LONGEST_WAIT_MS, Math.max(2 * entry.waitMs, 10_000, problem.retryS * 1000));
  }
  if (entries.get(name) !== entry) return;
  const access = entries.get("access");
  if (outcome.error?.status === 401 && access) {
    // The key is not valid any more, whichever panel was told so.
    Object.assign(access, { value: null, error: outcome.error, loading: false, at: Date.now() });
  }
  Object.assign(entry, outcome, { loading: false, at: Date.now() });
  changed();
}

/** Ask again, whatever the age. @param {string} [prefix] of the panels' names */
export function refresh(prefix = "") {
  for (const [name, entry] of entries) {
    if (name.startsWith(prefix)) entry.at = 0;
    if (name.startsWith(prefix) && entry.error) entries.delete(name);
  }
  changed();
}

/** Forget all answers, as after signing out. */
export function forget() {
  for (const entry of entries.values()) entry.aborter?.abort();
  entries.clear();
}

/** The entry as it is, without asking. @param {string} name */
export function peek(name) {
  return entries.get(name);
}
