/** The overview: figures, the series, breakdowns and campaigns of an advertiser in a range. */

import { html, nothing } from "../vendor/lit-html.js";
import { saveAs } from "../api.js";
import { exportFile } from "../exports.js";
import { ratios, sum } from "../exact.js";
import * as format from "../format.js";
import { badge, legend } from "../finality.js";
import { LiveStream } from "../live.js";
import { SUMMED } from "../measures.js";
import { alertBands, alertPanel, readAlerts } from "../panels/alerts.js";
import { anomalies } from "../panels/anomalies.js";
import { breakdown, rowLimit } from "../panels/breakdown.js";
import { controls, subjectOf, zoneOf } from "../panels/controls.js";
import { figures } from "../panels/figures.js";
import { reachFigures, reachNote, readReach, usersByCampaign } from "../panels/reach.js";
import { series, seriesChoices } from "../panels/series.js";
import { trending } from "../panels/trending.js";
import { comparison, resolveRange } from "../ranges.js";
import { panelBody, warnings } from "../states.js";
import { ask, changed, params } from "../store.js";

const POLL_MS = 10_000;
const SETTLED_POLL_MS = 60_000;

/** Rows that the stream has sent, by time, each with when it came. @type {Map<string, {row: any, at: number}>} */
let liveRows = new Map();
let liveFor = "";
/** @type {import("../live.js").Status} */
let liveStatus = { state: "off", detail: "", at: 0 };
const stream = new LiveStream(
  (rows) => {
    for (const row of rows) liveRows.set(row.time, { row, at: Date.now() });
    changed();
  },
  (status) => {
    liveStatus = status;
    changed();
  },
);

/** End the stream, as when another view is shown. */
export function leave() {
  stream.follow(null);
  liveRows = new Map();
  liveFor = "";
}

/** The question of the series, of which figures and chart are parts. @param {import("../ranges.js").Range} range @param {string} zone */
function seriesQuery(range, zone) {
  return {
    ...subjectOf(params), start: new Date(range.start).toISOString(), end: new Date(range.end).toISOString(), granularity: range.grain, timezone: zone,
    filter: Object.entries(params.filters).map(([dimension, values]) => `${dimension}:${values.join(",")}`),
  };
}

/** @param {import("../main.js").Context} context */
export function overview(context) {
  const zone = zoneOf(context);
  const range = resolveRange(params, zone, context.now);
  const subject = subjectOf(params);
  if (!Object.keys(subject).length) return html`${controls(context, range, zone)}<p class="empty">Choose an advertiser to begin.</p>`;
  const query = seriesQuery(range, zone);
  // The same question in the figures, the chart, the stream and the export: all of them have its answer id.
  const shown = { ...query, fill: "zero", compare: comparison(params.compare, range, zone, context.now) };
  const full = { ...shown, totals: true };
  const entry = ask("series", "v1/metrics", full, range.open ? POLL_MS : SETTLED_POLL_MS);
  follow(range.open ? shown : null);
  const answer = entry.value && merge(entry);
  const reach = readReach(range, rowLimit());
  const alerts = params.advertiser ? readAlerts(params.advertiser) : null;
  return html`<h1 class="visually-hidden">Overview</h1>
    ${controls(context, range, zone)}
    <section aria-labelledby="figures-title">
      <h2 id="figures-title" class="with-note">${range.label}
        <span class="note">${format.range(range.start, Math.min(range.end, Math.max(context.now, range.start + 1)), zone)}, ${zone}</span></h2>
      ${panelBody(entry, () => html`${figures(answer, context.currency, reachFigures(reach))} ${freshness(answer, range, zone)} ${reachNote(reach, range, zone)} ${warnings(answer.warnings)}`)}
    </section>
    <section class="panel" aria-labelledby="series-title">
      <div class="panel-head"><h2 id="series-title">By ${range.grain}</h2>
        <div class="actions">
          <button type="button" @click=${() => exportCsv(shown, range)}>Export CSV</button>
          <button type="button" @click=${() => exportPng(range)}>Export PNG</button>
        </div>
      </div>
      ${seriesChoices()}
      ${panelBody(entry, () => series(answer, range, zone, context.currency, alerts ? alertBands(alerts, range) : []))}
      ${legend()}
    </section>
    ${alerts ? alertPanel(context, alerts, zone, "Alerts") : nothing}
    ${anomalies(context, range, zone)}
    ${trending(range)}
    ${breakdown(context, range, query, usersByCampaign(reach))}`;
}

/** @param {import("../api.js").Query | null} query */
function follow(query) {
  const key = query ? JSON.stringify(query) : "";
  if (key !== liveFor) {
    liveFor = key;
    liveRows = new Map();
  }
  stream.follow(document.hidden ? null : query);
}

/**
 * The answer with the rows that the stream has sent since it came; its totals are summed again where any row is new.
 * @param {import("../store.js").Entry} entry
 */
function merge(entry) {
  const answer = entry.value;
  if (!liveRows.size || entry.former) return answer;
  let moved = false;
  const data = answer.data.map((/** @type {any} */ row) => {
    const live = liveRows.get(row.time);
    // What came before the answer is older than it: the stream may have ended since.
    if (!live || live.at <= entry.valueAt) return row;
    if (SUMMED.every((m) => live.row[m] === row[m]) && live.row.finality === row.finality) return row;
    moved = true;
    return { ...row, ...live.row };
  });
  if (!moved) return answer;
  /** @type {Record<string, any>} */
  const sums = Object.fromEntries(SUMMED.map((m) => [m, sum(data.map((/** @type {any} */ row) => row[m]))]));
  return { ...answer, data, totals: { ...answer.totals, ...sums, ...ratios(/** @type {any} */ (sums)) }, answer_id: stream.lastId };
}

/** How new the numbers are, and how final. @param {any} answer @param {import("../ranges.js").Range} range @param {string} zone */
function freshness(answer, range, zone) {
  const words = { off: "", connecting: "connecting…", live: "live", behind: "behind", ended: "not live" };
  const watermark = answer.watermark ? Date.parse(answer.watermark) : null;
  return html`<p class="freshness">
    ${badge(answer.finality)}
    ${watermark ? html`<span>counted up to <time datetime=${answer.watermark}>${format.time(watermark, zone, "second")}</time></span>` : html`<span>nothing counted yet</span>`}
    ${range.open ? html`<span class="live ${liveStatus.state}" role="status"><span class="dot" aria-hidden="true"></span>${words[liveStatus.state]}${liveStatus.detail ? `: ${liveStatus.detail}` : ""}</span>` : nothing}
    <span class="answer" title="The same question over the same data has the same answer id, in every export">answer ${answer.answer_id ?? ""}</span>
  </p>`;
}

/** @param {import("../api.js").Query} query @param {import("../ranges.js").Range} range */
function exportCsv(query, range) {
  return exportFile("v1/metrics", { ...query, format: "csv" }, `adclick_${range.grain}_${new Date(range.start).toISOString().slice(0, 10)}.csv`);
}

/** @param {import("../ranges.js").Range} range */
async function exportPng(range) {
  const chart = /** @type {import("../chart.js").AdChart | null} */ (document.querySelector("ad-chart"));
  const blob = await chart?.png();
  if (blob) saveAs(blob, `adclick_${range.grain}_${new Date(range.start).toISOString().slice(0, 10)}.png`);
}
