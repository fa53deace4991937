/** Exact integers: JSON with integers beyond 2^53, and ratios as the router rounds them. */

const MARK = crypto.randomUUID();
const STRING_OR_LONG = /"(?:[^"\\]|\\.)*"|(?<![\d.])-?\d{16,}(?![\d.eE])/g;

/**
 * Parse JSON. Integers that a number cannot hold exactly become BigInt.
 * @param {string} text
 * @returns {any}
 */
export function parseExact(text) {
  if (!/\d{16}/.test(text)) return JSON.parse(text);
  const marked = text.replace(STRING_OR_LONG, (token) => (token[0] === '"' ? token : `"${MARK}${token}"`));
  return JSON.parse(marked, (_, value) => {
    if (typeof value !== "string" || !value.startsWith(MARK)) return value;
    const integer = BigInt(value.slice(MARK.length));
    return BigInt(Number(integer)) === integer && Number.isSafeInteger(Number(integer)) ? Number(integer) : integer;
  });
}

/** JSON with integers of any size as they are. @param {any} value */
export function writeExact(value) {
  const marked = JSON.stringify(value, (_, one) => (typeof one === "bigint" ? `${MARK}${one}` : one));
  return marked.replaceAll(new RegExp(`"${MARK}(-?\\d+)"`, "g"), "$1");
}

/** @typedef {number | bigint} Integer */

/**
 * The sum of a column, as a number where that is exact.
 * @param {Iterable<Integer>} values
 * @returns {Integer}
 */
export function sum(values) {
  let total = 0n;
  for (const value of values) total += BigInt(value);
  return narrow(total);
}

/** @param {bigint} value @returns {Integer} */
function narrow(value) {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

/**
 * part × scale / whole to the nearest integer, halves up; null where the divisor is 0.
 * @param {Integer} part @param {Integer} whole @param {Integer} scale
 * @returns {Integer | null}
 */
export function divide(part, whole, scale = 1) {
  const divisor = BigInt(whole);
  if (divisor === 0n) return null;
  return narrow((2n * BigInt(part) * BigInt(scale) + divisor) / (2n * divisor));
}

/**
 * The ratios of summed measures, rounded as in answers: ctr and cvr to four decimals, money to whole micros.
 * @param {Record<string, Integer>} sums
 */
export function ratios(sums) {
  const share = (/** @type {Integer} */ part, /** @type {Integer} */ whole) => {
    const parts = divide(part, whole, 10_000);
    return parts === null ? null : Number(parts) / 10_000;
  };
  return {
    ctr: share(sums.clicks, sums.impressions),
    cvr: share(sums.conversions, sums.clicks),
    cpc_micros: divide(sums.spend_micros, sums.clicks),
    cpm_micros: divide(sums.spend_micros, sums.impressions, 1000),
  };
}

/**
 * Relative change, or null where there is nothing to compare with.
 * @param {Integer | null | undefined} now @param {Integer | null | undefined} before
 */
export function change(now, before) {
  if (now === null || now === undefined || !before) return null;
  return (Number(now) - Number(before)) / Number(before);
}
