/** Tables: a caption, headers that sort, and rows; what a screen reader needs is there. */

import { repeat } from "./vendor/directives/repeat.js";
import { html, nothing } from "./vendor/lit-html.js";

/**
 * @typedef {{id: string, title: string, cell: (row: any) => unknown, sort?: string, number?: boolean}} Column
 */

/**
 * @param {{caption: string, columns: Column[], rows: any[], by?: string, key?: (row: any) => string, onSort?: (by: string) => void, empty?: string}} table
 *   `by`: the column sorted by, with a minus for descending. `key`: what a row is about, so that its buttons keep the focus when rows move.
 */
export function table({ caption, columns, rows, by = "", key, onSort, empty = "Nothing here." }) {
  const sorted = by.replace(/^-/, "");
  const header = (/** @type {Column} */ column) => {
    const active = column.sort === sorted;
    const order = !active ? nothing : by.startsWith("-") ? "descending" : "ascending";
    const next = active && by.startsWith("-") ? column.sort : `-${column.sort}`;
    return html`<th scope="col" class=${column.number ? "number" : ""} aria-sort=${order}>
      ${column.sort && onSort
        ? html`<button type="button" class="sort" @click=${() => onSort(/** @type {string} */ (next))}>${column.title}<span aria-hidden="true">${active ? (by.startsWith("-") ? " ▾" : " ▴") : ""}</span></button>`
        : column.title}
    </th>`;
  };
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${caption}>
    <table>
      <caption class="visually-hidden">${caption}</caption>
      <thead><tr>${columns.map(header)}</tr></thead>
      <tbody>
        ${rows.length
          ? repeat(rows, (row, n) => (key ? key(row) : n), (row) => html`<tr>${columns.map((c, n) => (n === 0 ? html`<th scope="row" class=${c.number ? "number" : ""}>${c.cell(row)}</th>` : html`<td class=${c.number ? "number" : ""}>${c.cell(row)}</td>`))}</tr>`)
          : html`<tr><td class="empty" colspan=${columns.length}>${empty}</td></tr>`}
      </tbody>
    </table>
  </div>`;
}
