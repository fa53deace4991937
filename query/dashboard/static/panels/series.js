/** One or two measures over time, as a chart and as a table. */

import { html, nothing } from "../vendor/lit-html.js";
import "../chart.js";
import { badge, finalityOf } from "../finality.js";
import * as format from "../format.js";
import { axisText, MEASURES, measureOf, text } from "../measures.js";
import { begun, bucketEnd } from "../ranges.js";
import { choose, fragmentOf, params } from "../store.js";
import { table } from "../table.js";

/** @type {{answer: any, measure: string, second: string, compare: string, bands: string, model: any}} */
let last = { answer: null, measure: "", second: "", compare: "", bands: "", model: null };

/** Which measures are shown, and what they are compared with. */
export function seriesChoices() {
  const select = (/** @type {string} */ name, /** @type {string} */ value, /** @type {boolean} */ optional) => html`<label>${optional ? "and" : "Show"}
    <select @change=${(/** @type {any} */ e) => choose({ [name]: e.target.value })}>
      ${optional ? html`<option value="" ?selected=${value === ""}>nothing else</option>` : nothing}
      ${MEASURES.map((m) => html`<option value=${m.id} ?selected=${m.id === value}>${m.title}</option>`)}
    </select></label>`;
  return html`<div class="row">
      ${select("measure", params.measure, false)} ${select("second", params.second, true)}
      <label>Compare with <select @change=${(/** @type {any} */ e) => choose({ compare: e.target.value })}>
        ${[["previous", "the period before"], ["week", "a week before"], ["none", "nothing"]].map(([id, word]) => html`<option value=${id} ?selected=${params.compare === id}>${word}</option>`)}
      </select></label>
    </div>`;
}

/** @param {any} answer @param {import("../ranges.js").Range} range @param {string} zone @param {string} currency @param {import("../chart.js").Band[]} bands */
export function series(answer, range, zone, currency, bands) {
  const compared = answer.comparison
    ? html`<p class="note">dashed: ${format.range(Date.parse(answer.comparison.start), Date.parse(answer.comparison.end), zone)}</p>`
    : params.compare === "none" ? nothing : html`<p class="note">Not compared: the numbers before are no longer retained by ${range.grain}; choose a coarser one.</p>`;
  return html`${compared}
    ${answer.data.length ? html`<ad-chart .model=${model(answer, range, zone, currency, bands)}></ad-chart>` : html`<p class="empty">No events in this range.</p>`}
    ${late(answer.totals)}
    <details><summary>The same as a table</summary>
      ${asTable(answer, range, zone, currency)}</details>`;
}

/** How many clicks and events of the range were late. @param {any} totals */
function late(totals) {
  if (!totals) return nothing;
  const clicks = Number(totals.clicks);
  const share = clicks ? ` (${format.percent(Number(totals.late_clicks) / clicks)})` : "";
  return html`<p id="late"><b>Late, and counted:</b> <b data-late="clicks">${format.integer(totals.late_clicks)}</b> of ${format.integer(totals.clicks)} clicks${share}, and of all events <b data-late="events">${format.integer(totals.late_events)}</b>.
    <span class="note">They came between five minutes and an hour after their minute was over. Those that came even later are added by the nightly run, and are counted apart: see <a href=${fragmentOf({ ...params, view: "bill" })}>Bills</a>.</span></p>`;
}

/** The model of the chart; the same object while nothing has changed. @param {any} answer @param {import("../ranges.js").Range} range @param {string} zone @param {string} currency @param {import("../chart.js").Band[]} bands */
function model(answer, range, zone, currency, bands) {
  const shown = JSON.stringify(bands);
  if (last.answer === answer && last.measure === params.measure && last.second === params.second && last.bands === shown) return last.model;
  const rows = begun(answer.data, Date.now());
  const times = rows.map((/** @type {any} */ row) => Date.parse(row.time));
  const chosen = [params.measure, ...(params.second && params.second !== params.measure ? [params.second] : [])].map(measureOf);
  const numbers = (/** @type {string} */ name) => rows.map((/** @type {any} */ row) => (row[name] === null || row[name] === undefined ? null : Number(row[name])));
  const made = {
    label: `${chosen.map((m) => m.title).join(" and ")} by ${range.grain}; the table below has the numbers`,
    times,
    ends: times.map((/** @type {number} */ ms) => bucketEnd(ms, range.grain, zone)),
    finality: rows.map((/** @type {any} */ row) => row.finality),
    watermark: answer.watermark ? Date.parse(answer.watermark) : null,
    axisTime: (/** @type {number} */ ms) => (range.grain === "day" ? format.time(ms, zone, "day") : format.time(ms, zone)),
    series: chosen.map((measure, number) => ({
      label: measure.title, color: measure.color, values: numbers(measure.id), short: (/** @type {number} */ v) => axisText(measure, v, currency),
      before: number === 0 && answer.comparison ? numbers(`previous_${measure.id}`) : undefined,
    })),
    bands,
    describe: (/** @type {number} */ index) => [
      ...describe(rows[index], times[index], chosen, answer, range, zone, currency),
      ...bands.filter((band) => band.start < bucketEnd(times[index], range.grain, zone) && band.end > times[index]).map((band) => /** @type {[string, string]} */ ([band.critical ? "critical" : "warning", band.text])),
    ],
  };
  last = { answer, measure: params.measure, second: params.second, compare: params.compare, bands: shown, model: made };
  return made;
}

/** What the tooltip says of a bucket. @returns {[string, string][]}
 * @param {any} row @param {number} ms @param {import("../measures.js").Measure[]} chosen @param {any} answer
 * @param {import("../ranges.js").Range} range @param {string} zone @param {string} currency */
function describe(row, ms, chosen, answer, range, zone, currency) {
  const finality = finalityOf(row.finality);
  /** @type {[string, string][]} */
  const lines = [[format.time(ms, zone, range.grain), finality.word]];
  for (const measure of chosen) {
    lines.push([measure.title, text(measure, row[measure.id], currency)]);
    if (answer.comparison) lines.push(["before", text(measure, row[`previous_${measure.id}`], currency)]);
  }
  if (row.late_events) lines.push(["late events", `${format.integer(row.late_events)}, of which clicks ${format.integer(row.late_clicks)}`]);
  if (row.settled_until && row.finality !== "reconciled") lines.push(["settled after", format.time(Date.parse(row.settled_until), zone)]);
  const tier = answer.statistics?.tiers?.find((/** @type {any} */ t) => Date.parse(t.start) <= ms && ms < Date.parse(t.end));
  if (tier) lines.push(["from", tierWords[tier.tier] ?? tier.tier]);
  return lines;
}

const tierWords = /** @type {Record<string, string>} */ ({
  hot: "minutes in Redis", warm: "hours in ClickHouse", cold: "days in ClickHouse", "exact-hours": "the nightly run", "exact-days": "the nightly run",
});

/** @param {any} answer @param {import("../ranges.js").Range} range @param {string} zone @param {string} currency */
function asTable(answer, range, zone, currency) {
  return table({
    caption: `All figures by ${range.grain}`,
    rows: begun(answer.data, Date.now()),
    columns: [
      { id: "time", title: "Time", cell: (row) => format.time(Date.parse(row.time), zone, range.grain) },
      ...MEASURES.map((m) => ({ id: m.id, title: m.title, number: true, cell: (/** @type {any} */ row) => text(m, row[m.id], currency) })),
      { id: "late_clicks", title: "Late clicks", number: true, cell: (row) => format.integer(row.late_clicks) },
      { id: "late_events", title: "Late events", number: true, cell: (row) => format.integer(row.late_events) },
      { id: "finality", title: "Finality", cell: (row) => badge(row.finality) },
    ],
  });
}
