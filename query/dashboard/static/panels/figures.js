/** The figures of a range: each with its change against the period before, and a sparkline. */

import { html, nothing, svg } from "../vendor/lit-html.js";
import { change } from "../exact.js";
import * as format from "../format.js";
import { MEASURES, text } from "../measures.js";
import { begun } from "../ranges.js";
import { choose, params } from "../store.js";

/** From so many characters on a value is set smaller. */
const LONG = 8;

/** @param {any} answer @param {string} currency @param {unknown} [more] figures that the chart cannot show */
export function figures(answer, currency, more = nothing) {
  const totals = answer.totals ?? {};
  const rows = begun(answer.data, Date.now());
  return html`<ul class="figures">
    ${MEASURES.map((measure) => {
      const value = totals[measure.id];
      const shown = text(measure, value, currency);
      const before = totals[`previous_${measure.id}`];
      const moved = answer.comparison ? change(value, before) : null;
      const chosen = params.measure === measure.id;
      return html`<li class="figure ${chosen ? "chosen" : ""}">
        <button type="button" aria-pressed=${chosen} @click=${() => choose({ measure: measure.id, second: params.second === measure.id ? "" : params.second })}>
          <span class="figure-title">${measure.title}</span>
          <span class="figure-value ${shown.length > LONG ? "long" : ""}" data-measure=${measure.id} title=${exact(measure, value)}>${shown}</span>
          <span class="figure-change ${tone(measure, moved)}">${answer.comparison
            ? html`${moved === null ? notComparable(measure, before, currency) : html`${format.signedPercent(moved)}<span class="visually-hidden"> against ${text(measure, before, currency)} before</span>`}`
            : nothing}</span>
          ${sparkline(rows.map((/** @type {any} */ row) => row[measure.id]), measure.color)}
        </button></li>`;
    })}
    ${more}
  </ul>`;
}

/** What stands for a change that has no share: nothing is a share of 0. @param {import("../measures.js").Measure} measure @param {any} before @param {string} currency */
function notComparable(measure, before, currency) {
  return before === null || before === undefined ? "no comparison" : `${text(measure, before, currency)} before`;
}

/** Money to the last micro; what is shown has whole cents. @param {import("../measures.js").Measure} measure @param {any} value */
function exact(measure, value) {
  return (measure.kind === "money" || measure.kind === "price") && value !== null && value !== undefined ? format.decimal(value) : nothing;
}

/** @param {import("../measures.js").Measure} measure @param {number | null} moved */
function tone(measure, moved) {
  if (!moved || !measure.good || Math.abs(moved) < 0.0005) return "";
  return moved > 0 ? "up" : "down";
}

/** @param {any[]} values @param {string} color */
function sparkline(values, color) {
  const numbers = values.map((v) => (v === null ? 0 : Number(v)));
  const top = Math.max(...numbers, 0) || 1;
  const step = 100 / Math.max(1, numbers.length - 1);
  const points = numbers.map((v, n) => `${(n * step).toFixed(1)},${(23 - (v / top) * 21).toFixed(1)}`).join(" ");
  return html`<svg class="spark ${color.slice(2)}" viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true">${svg`<polyline points=${points} />`}</svg>`;
}
