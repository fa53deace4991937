/** Ranges as people think of them, in a time zone; and the granularity that suits each. */

const MINUTE = 60_000;
const HOUR = 3_600_000;
const DAY = 86_400_000;
/** Minutes are retained for a day, hours for thirty; see the API's granularity. */
const RETAINED = { minute: 24 * HOUR, hour: 30 * DAY, day: Infinity };

export const PRESETS = [
  { id: "live", label: "Live: last hour" },
  { id: "today", label: "Today" },
  { id: "yesterday", label: "Yesterday" },
  { id: "24h", label: "Last 24 hours" },
  { id: "7d", label: "Last 7 days" },
  { id: "30d", label: "Last 30 days" },
  { id: "mtd", label: "Month to date" },
  { id: "last-month", label: "Last month" },
  { id: "custom", label: "Custom…" },
];
export const GRAINS = ["auto", "minute", "hour", "day"];

/** @type {Map<string, Intl.DateTimeFormat>} */
const parts = new Map();

/** The wall clock of a zone at a moment, as if it were UTC. @param {number} ms @param {string} zone */
function wallClock(ms, zone) {
  let format = parts.get(zone);
  if (!format) {
    format = new Intl.DateTimeFormat("en-GB", {
      timeZone: zone, year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
    });
    parts.set(zone, format);
  }
  /** @type {Record<string, number>} */
  const values = {};
  for (const part of format.formatToParts(ms)) values[part.type] = Number(part.value);
  return Date.UTC(values.year, values.month - 1, values.day, values.hour, values.minute, values.second);
}

/**
 * The moment at which a zone's clock shows a wall time; where a clock change leaves it out, the first moment after that.
 * @param {number} wall as of Date.UTC @param {string} zone
 */
function moment(wall, zone) {
  let ms = wall - (wallClock(wall, zone) - wall);
  const shift = wallClock(ms, zone) - wall;
  if (shift !== 0) {
    const other = ms - shift;
    ms = wallClock(other, zone) === wall ? other : Math.max(ms, other);
  }
  return ms;
}

/** Midnight of the local day of a moment, `days` days on. @param {number} ms @param {string} zone */
export function startOfDay(ms, zone, days = 0) {
  const wall = wallClock(ms, zone);
  return moment(wall - (((wall % DAY) + DAY) % DAY) + days * DAY, zone);
}

/** @param {number} ms @param {string} zone @param {number} months */
export function startOfMonth(ms, zone, months = 0) {
  const wall = new Date(wallClock(ms, zone));
  return moment(Date.UTC(wall.getUTCFullYear(), wall.getUTCMonth() + months, 1), zone);
}

/** A local date, YYYY-MM-DD. @param {number} ms @param {string} zone */
export function isoDate(ms, zone) {
  return new Date(wallClock(ms, zone)).toISOString().slice(0, 10);
}

/** @param {string} date YYYY-MM-DD @param {string} zone */
export function ofIsoDate(date, zone, days = 0) {
  return moment(Date.parse(`${date}T00:00:00Z`) + days * DAY, zone);
}

/** How far a zone's clock is ahead of UTC. @param {number} ms @param {string} zone */
function offset(ms, zone) {
  return wallClock(ms, zone) - Math.floor(ms / 1000) * 1000;
}

/** The beginning of the local hour that holds a moment. @param {number} ms @param {string} zone */
function startOfHour(ms, zone) {
  const ahead = offset(ms, zone);
  return Math.floor((ms + ahead) / HOUR) * HOUR - ahead;
}

/** For how long numbers of a granularity are kept: local hours of zones such as India's consist of minutes. @param {string} grain @param {number} now @param {string} zone */
function retained(grain, now, zone) {
  if (grain === "hour" && offset(now, zone) % HOUR !== 0) return RETAINED.minute;
  return RETAINED[/** @type {keyof typeof RETAINED} */ (grain)];
}

/** @param {string} zone */
export function isZone(zone) {
  try {
    new Intl.DateTimeFormat("en", { timeZone: zone });
    return true;
  } catch {
    return false;
  }
}

/**
 * @typedef {{start: number, end: number, grain: string, open: boolean, label: string}} Range
 *   `open`: it reaches to now. Epoch milliseconds, aligned to the grain.
 */

/**
 * The range of a preset at a moment.
 * @param {{range: string, from?: string, to?: string, grain: string}} params
 * @param {string} zone @param {number} now
 * @returns {Range}
 */
export function resolveRange(params, zone, now) {
  const today = startOfDay(now, zone);
  /** @type {Record<string, () => [number, number]>} */
  const ranges = {
    live: () => [now - HOUR, now],
    today: () => [today, now],
    yesterday: () => [startOfDay(now, zone, -1), today],
    "24h": () => [now - DAY, now],
    "7d": () => [startOfDay(now, zone, -6), now],
    "30d": () => [startOfDay(now, zone, -29), now],
    mtd: () => [startOfMonth(now, zone), now],
    "last-month": () => [startOfMonth(now, zone, -1), startOfMonth(now, zone)],
    custom: () => customRange(params, zone, now),
  };
  const [from, to] = (ranges[params.range] ?? ranges["24h"])();
  const grain = params.grain !== "auto" && GRAINS.includes(params.grain) ? params.grain : suitableGrain(from, to, now, params.range, zone);
  const [start, until] = align(from, to, grain, zone);
  // The API compares a whole month with the month before, and of one that is not over the same part: 1 to 18 with 1 to 18.
  const end = params.range === "mtd" ? startOfMonth(now, zone, 1) : until;
  const preset = PRESETS.find((p) => p.id === params.range) ?? PRESETS[3];
  return { start, end, grain, open: end > now, label: preset.id === "custom" ? "Custom range" : preset.label.replace("Live: last hour", "Last hour") };
}

/** @param {{from?: string, to?: string}} params @param {string} zone @param {number} now @returns {[number, number]} */
function customRange(params, zone, now) {
  const [from, to] = [params.from, params.to].map((date) => (date && !Number.isNaN(Date.parse(date)) ? date : ""));
  const [first, last] = from && to && from > to ? [to, from] : [from, to];
  const end = last ? ofIsoDate(last, zone, 1) : now;
  const start = first ? ofIsoDate(first, zone) : startOfDay(end - 1, zone, -6);
  return start < end ? [start, end] : [start, startOfDay(start, zone, 1)];
}

/** The rows whose buckets have begun: a range may reach beyond now. @param {any[]} rows @param {number} now */
export function begun(rows, now) {
  return rows.filter((row) => Date.parse(row.time) <= now);
}

/** @param {number} from @param {number} to @param {number} now @param {string} preset @param {string} zone */
function suitableGrain(from, to, now, preset, zone) {
  if (preset === "live") return "minute";
  const length = to - from;
  // What is compared with a day before needs more than is retained of minutes, and so of local hours that consist of them.
  const byHours = preset === "24h" || offset(now, zone) % HOUR === 0;
  if (byHours && length <= 8 * DAY && from >= now - retained("hour", now, zone)) return "hour";
  return "day";
}

/** The granularities at which a range can be asked for. @param {number} start @param {number} now @param {string} zone */
export function availableGrains(start, now, zone) {
  return GRAINS.filter((grain) => grain === "auto" || start >= now - retained(grain, now, zone) - DAY);
}

/** Align a range outwards. @param {number} from @param {number} to @param {string} grain @param {string} zone */
function align(from, to, grain, zone) {
  if (grain === "day") {
    const end = startOfDay(to, zone);
    return [startOfDay(from, zone), end === to ? to : startOfDay(to, zone, 1)];
  }
  if (grain === "minute") return [Math.floor(from / MINUTE) * MINUTE, Math.ceil(to / MINUTE) * MINUTE];
  const end = startOfHour(to, zone);
  return [startOfHour(from, zone), end === to ? to : end + HOUR];
}

/** The end of a bucket. @param {number} start @param {string} grain @param {string} zone */
export function bucketEnd(start, grain, zone) {
  if (grain === "day") return startOfDay(start + 1, zone, 1);
  return start + (grain === "minute" ? MINUTE : HOUR);
}

/**
 * What a range is compared with: nothing where the earlier range is no longer retained by minutes, which hours of zones such as
 * India's are made of, too.
 * @param {string} compare previous, week or none @param {Range} range @param {string} zone @param {number} now
 * @returns {string | undefined}
 */
export function comparison(compare, range, zone, now) {
  if (compare === "none") return undefined;
  const byMinutes = range.grain === "minute" || (range.grain === "hour" && offset(range.start, zone) % HOUR !== 0);
  const before = range.start - (compare === "week" ? 7 * DAY : range.end - range.start);
  return byMinutes && before < now - 25 * HOUR ? undefined : compare;
}

/** A range, widened to whole hours of UTC. @param {Range} range */
export function wholeHours(range) {
  return { start: new Date(Math.floor(range.start / HOUR) * HOUR).toISOString(), end: new Date(Math.ceil(range.end / HOUR) * HOUR).toISOString() };
}

/**
 * The range of a total: local days that begin within an hour of UTC are counted from the next whole hour on, as the days of a
 * series are, unless minutes are still retained.
 * @param {Range} range @param {number} now
 */
export function totalRange(range, now) {
  const up = (/** @type {number} */ ms) => (range.start < now - RETAINED.minute ? Math.ceil(ms / HOUR) * HOUR : ms);
  return { start: new Date(up(range.start)).toISOString(), end: new Date(up(range.end)).toISOString() };
}
