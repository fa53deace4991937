/** Numbers, money, shares and times as text, in the browser's locale. */

const LOCALE = navigator.language;
const integers = new Intl.NumberFormat(LOCALE);
const compact = new Intl.NumberFormat(LOCALE, { notation: "compact", maximumFractionDigits: 1 });
const percents = new Intl.NumberFormat(LOCALE, { style: "percent", minimumFractionDigits: 2, maximumFractionDigits: 2 });
const factors = new Intl.NumberFormat(LOCALE, { maximumSignificantDigits: 3 });
const changes = new Intl.NumberFormat(LOCALE, { style: "percent", signDisplay: "exceptZero", maximumFractionDigits: 1 });
/** @type {Map<string, Intl.NumberFormat>} */
const moneys = new Map();
/** @type {Map<string, Intl.DateTimeFormat>} */
const clocks = new Map();

/** What stands for a number that does not exist, such as a ratio whose divisor is 0. */
export const NONE = "–";

/** @typedef {import("./exact.js").Integer} Integer */

/** @param {Integer | null | undefined} value */
export function integer(value) {
  return value === null || value === undefined ? NONE : integers.format(value);
}

/** A factor or a score. @param {number} value */
export function factor(value) {
  return factors.format(value);
}

/**
 * Micros as an exact decimal: 1234567 → "1.234567".
 * @param {Integer} micros
 */
export function decimal(micros) {
  const value = BigInt(micros);
  const digits = (value < 0n ? -value : value).toString().padStart(7, "0");
  return `${value < 0n ? "-" : ""}${digits.slice(0, -6)}.${digits.slice(-6)}`;
}

/** @param {Integer | null | undefined} micros @param {string} currency */
export function money(micros, currency, digits = 2) {
  if (micros === null || micros === undefined) return NONE;
  const key = `${currency} ${digits}`;
  let format = moneys.get(key);
  if (!format) {
    const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    try {
      format = new Intl.NumberFormat(LOCALE, { style: "currency", currency, ...options });
    } catch {
      format = new Intl.NumberFormat(LOCALE, options);
    }
    moneys.set(key, format);
  }
  // A decimal string is formatted digit by digit, without passing through a float.
  return format.format(/** @type {any} */ (decimal(micros)));
}

/** @param {number | null | undefined} value */
export function percent(value) {
  return value === null || value === undefined ? NONE : percents.format(value);
}

/** A relative change; as a multiple from ten times on. @param {number | null | undefined} value */
export function signedPercent(value) {
  if (value === null || value === undefined) return NONE;
  return value < 9 ? changes.format(value) : `${compact.format(value + 1)}×`;
}

/** @param {number} value */
export function short(value) {
  return compact.format(value);
}

/** @param {number} value @param {string} currency */
export function shortMoney(value, currency) {
  try {
    return new Intl.NumberFormat(LOCALE, { style: "currency", currency, notation: "compact", maximumFractionDigits: 1 }).format(value);
  } catch {
    return short(value);
  }
}

/** @param {string} zone @param {Intl.DateTimeFormatOptions} options */
function clock(zone, options) {
  const key = zone + JSON.stringify(options);
  let format = clocks.get(key);
  if (!format) clocks.set(key, (format = new Intl.DateTimeFormat(LOCALE, { timeZone: zone, ...options })));
  return format;
}

/**
 * The label of a bucket or moment.
 * @param {number} ms epoch milliseconds
 * @param {string} zone IANA name
 * @param {string} grain minute, hour, day or second
 */
export function time(ms, zone, grain = "minute") {
  if (grain === "day") return clock(zone, { dateStyle: "medium" }).format(ms);
  const seconds = grain === "second" ? /** @type {const} */ ({ second: "2-digit" }) : {};
  return clock(zone, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23", ...seconds }).format(ms);
}

/** @param {number} ms @param {string} zone */
export function clockTime(ms, zone) {
  return clock(zone, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" }).format(ms);
}

/** A range as text: "29 Nov 2026, 00:00 – 30 Nov 2026, 00:00". @param {number} start @param {number} end @param {string} zone */
export function range(start, end, zone) {
  return clock(zone, { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" }).formatRange(start, end);
}

/** A text in which each number of milliseconds is in words. @param {string} text */
export function withDurations(text) {
  return text.replace(/\b(\d+) ms\b/g, (_, ms) => ago(Number(ms) / 1000));
}

/** How long ago, in words. @param {number} seconds */
export function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return seconds < 63072000 ? `${Math.round(seconds / 86400)} d` : `${Math.round(seconds / 31557600)} years`;
}
