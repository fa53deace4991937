/** Exports: an answer saved as a file, and what is said while and after. */

import { download, getJson, saveAs } from "./api.js";
import { announce } from "./store.js";

/** Save an answer as a file. What goes wrong is said by the page, as for all that a button does. @param {string} path @param {import("./api.js").Query} query @param {string} name */
export async function exportFile(path, query, name) {
  announce(`Preparing ${name}…`);
  try {
    await download(path, query, name);
    announce(`${name} was saved.`);
  } catch (error) {
    announce("");
    throw error;
  }
}

/** A cell of CSV (RFC 4180). Text that a spreadsheet would run as a formula is kept from that by an apostrophe. @param {unknown} value */
function cell(value) {
  if (typeof value !== "string") return value === null || value === undefined ? "" : String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/**
 * Save all pages of rows as CSV.
 * @param {string} path @param {import("./api.js").Query} query @param {string} name
 * @param {[string, (row: any) => unknown][]} columns title and value of each
 */
export async function exportPages(path, query, name, columns) {
  const lines = [columns.map(([title]) => cell(title)).join(",")];
  announce(`Preparing ${name}…`);
  try {
    /** @type {string | undefined} */
    let cursor;
    do {
      const page = await getJson(path, { query: { ...query, limit: 10_000, cursor } });
      for (const row of page.data) lines.push(columns.map(([, value]) => cell(value(row))).join(","));
      cursor = page.next_cursor ?? undefined;
    } while (cursor);
    saveAs(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }), name);
    announce(`${name} was saved.`);
  } catch (error) {
    announce("");
    throw error;
  }
}
