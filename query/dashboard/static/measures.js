/** The figures: what they are called, and how each is written. */

import * as format from "./format.js";

/**
 * @typedef {{id: string, title: string, kind: "count" | "share" | "money" | "price", color: string, good: number}} Measure
 *   `good`: 1 where more is better, 0 where it is neither.
 */

/** @type {Measure[]} */
export const MEASURES = [
  { id: "impressions", title: "Impressions", kind: "count", color: "--c1", good: 1 },
  { id: "clicks", title: "Clicks", kind: "count", color: "--c2", good: 1 },
  { id: "ctr", title: "CTR", kind: "share", color: "--c3", good: 1 },
  { id: "conversions", title: "Conversions", kind: "count", color: "--c4", good: 1 },
  { id: "cvr", title: "CVR", kind: "share", color: "--c5", good: 1 },
  { id: "spend_micros", title: "Spend", kind: "money", color: "--c6", good: 0 },
  { id: "cpc_micros", title: "CPC", kind: "price", color: "--c7", good: 0 },
  { id: "cpm_micros", title: "CPM", kind: "money", color: "--c8", good: 0 },
];
/** The measures that are summed; the others are ratios of these. */
export const SUMMED = ["impressions", "clicks", "conversions", "spend_micros", "late_events", "late_clicks"];

/** @param {string} id */
export function measureOf(id) {
  return MEASURES.find((m) => m.id === id) ?? MEASURES[0];
}

/** A value as text. @param {Measure} measure @param {any} value @param {string} currency */
export function text(measure, value, currency) {
  if (measure.kind === "share") return format.percent(value);
  if (measure.kind === "count") return format.integer(value);
  return format.money(value, currency, measure.kind === "price" ? 3 : 2);
}

/** A value of a chart as text for its axis. @param {Measure} measure @param {number} value @param {string} currency */
export function axisText(measure, value, currency) {
  if (measure.kind === "share") return format.percent(value);
  return measure.kind === "count" ? format.short(value) : format.shortMoney(value / 1e6, currency);
}
