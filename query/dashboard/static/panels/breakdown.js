/** Breakdowns of a range by campaign, ad, publisher, country or device; a row is a click away from being a filter. */

import { html, nothing } from "../vendor/lit-html.js";
import { exportFile } from "../exports.js";
import { change } from "../exact.js";
import { badge } from "../finality.js";
import * as format from "../format.js";
import { MEASURES, SUMMED, measureOf, text } from "../measures.js";
import { totalRange } from "../ranges.js";
import { panelBody, warnings } from "../states.js";
import { adjust, ask, choose, filter, params } from "../store.js";
import { table } from "../table.js";

export const DIMENSIONS = [
  { id: "campaign_id", title: "Campaigns", one: "Campaign", name: "campaign_name" },
  { id: "ad_id", title: "Ads", one: "Ad", name: "ad_name" },
  { id: "publisher_id", title: "Publishers", one: "Publisher", name: "publisher_name" },
  { id: "country", title: "Countries", one: "Country", name: "" },
  { id: "device", title: "Devices", one: "Device", name: "" },
];
const DAY_MS = 86_400_000;
const SHOWN = 50;
/** So many rows of the order are looked through for a search. */
const SEARCHED = 1000;
const POLL_MS = 10_000;
const SETTLED_POLL_MS = 120_000;
const countries = new Intl.DisplayNames([navigator.language], { type: "region", fallback: "code" });

/** What a value of a dimension is called. @param {string} dimension @param {any} row */
export function nameOf(dimension, row) {
  const value = row[dimension];
  if (dimension === "country") return /^[A-Z]{2}$/.test(value) && value !== "ZZ" ? `${countries.of(value)} (${value})` : `Unknown (${value})`;
  const name = row[DIMENSIONS.find((d) => d.id === dimension)?.name ?? ""];
  return name === undefined || name === String(value) ? String(value) : String(name);
}

/** @param {import("../main.js").Context} context @param {import("../ranges.js").Range} range @param {import("../api.js").Query} seriesQuery */
export function breakdown(context, range, seriesQuery) {
  const dimension = DIMENSIONS.find((d) => d.id === params.dimension) ?? DIMENSIONS[0];
  const query = { ...seriesQuery, ...totalRange(range, context.now), granularity: "total", group_by: dimension.id, order: params.by };
  const shown = { ...query, names: dimension.name ? true : undefined, compare: params.compare === "none" ? undefined : params.compare };
  const full = { ...shown, limit: params.search ? SEARCHED : SHOWN, totals: true };
  const entry = ask("breakdown", "v1/metrics", full, range.open ? POLL_MS : SETTLED_POLL_MS);
  return html`<section class="panel" aria-labelledby="breakdown-title">
    <div class="panel-head"><h2 id="breakdown-title">${dimension.title}</h2>
      <div class="actions"><button type="button" @click=${() => exportFile("v1/metrics", { ...shown, format: "csv" }, `adclick_by_${dimension.id}.csv`)}>Export CSV</button></div>
    </div>
    <div class="tabs" role="group" aria-label="Break down by">
      ${DIMENSIONS.map((d) => html`<button type="button" aria-pressed=${d === dimension} @click=${() => choose({ dimension: d.id, search: "" })}>${d.title}</button>`)}
    </div>
    <div class="row"><label>Search <input type="search" .value=${params.search} placeholder="name or number" @input=${(/** @type {any} */ e) => adjust({ search: e.target.value })}></label>
      ${entry.loading && entry.value ? html`<span class="note" role="status">loading…</span>` : nothing}</div>
    ${panelBody(entry, (answer) => rowsOf(context, dimension, answer, range))}
  </section>`;
}

/** @param {import("../main.js").Context} context @param {(typeof DIMENSIONS)[number]} dimension @param {any} answer @param {import("../ranges.js").Range} range */
function rowsOf(context, dimension, answer, range) {
  // While another dimension is loaded, the former one's rows must not show under its heading.
  if (answer.data.length && !(dimension.id in answer.data[0])) return html`<p class="loading" role="status">Loading…</p>`;
  const measure = measureOf(params.measure);
  const share = SUMMED.includes(measure.id) ? measure.id : "spend_micros";
  const whole = Number(answer.totals?.[share] ?? 0);
  const search = params.search.toLocaleLowerCase();
  const rows = answer.data.filter((/** @type {any} */ row) => !search || `${nameOf(dimension.id, row)} ${row[dimension.id]}`.toLocaleLowerCase().includes(search));
  const chosen = new Set(params.filters[dimension.id] ?? []);
  const budgets = dimension.id === "campaign_id" && context.campaigns.size ? context.campaigns : null;
  return html`${table({
      caption: `${dimension.title} in this range`,
      by: params.by,
      key: (row) => String(row[dimension.id]),
      onSort: (by) => choose({ by }),
      rows,
      empty: !search ? "No events in this range." : answer.next_cursor ? `No match among the first ${answer.data.length} rows of this order; the export has all.` : "No row matches the search.",
      columns: [
        {
          id: "name", title: dimension.one, sort: dimension.id,
          cell: (row) => html`<button type="button" class="link" aria-pressed=${chosen.has(String(row[dimension.id]))}
            @click=${() => filter(dimension.id, String(row[dimension.id]), !chosen.has(String(row[dimension.id])))}><span class="name" dir="auto">${nameOf(dimension.id, row)}</span></button>
            ${dimension.name && nameOf(dimension.id, row) !== String(row[dimension.id]) ? html`<span class="note">${String(row[dimension.id])}</span>` : nothing}`,
        },
        {
          id: "share", title: `Share of ${measureOf(share).title.toLowerCase()}`,
          cell: (row) => html`<meter min="0" max="1" .value=${whole ? Number(row[share]) / whole : 0} aria-label=${`share of ${measureOf(share).title}`}></meter>
            <span class="note">${whole ? format.percent(Number(row[share]) / whole) : format.NONE}</span>`,
        },
        ...(budgets ? budgetColumns(budgets, context.currency, Math.max(1, Math.round((range.end - range.start) / DAY_MS))) : []),
        ...[measureOf("spend_micros"), ...MEASURES.filter((m) => m.id !== "spend_micros")].map((m) => ({
          id: m.id, title: m.title, sort: m.id, number: true,
          cell: (/** @type {any} */ row) => html`${text(m, row[m.id], context.currency)}${m === measure && answer.comparison ? html` <span class="note">${format.signedPercent(change(row[m.id], row[`previous_${m.id}`]))}</span>` : nothing}`,
        })),
        ...(budgets ? [{ id: "status", title: "Status", cell: (/** @type {any} */ row) => budgets.get(String(row.campaign_id))?.status ?? format.NONE }] : []),
        { id: "finality", title: "Finality", cell: (row) => badge(row.finality) },
      ],
    })}
    ${dimension.id === "campaign_id" && !budgets ? html`<p class="note">Choose one advertiser to see budgets and what is spent of them.</p>` : nothing}
    ${answer.next_cursor ? html`<p class="note">The first ${answer.data.length} by this order; the export has all.</p>` : nothing}
    ${warnings(answer.warnings)}`;
}

/** Budget and pace, from the directory. A daily budget counts for each of the range's days. @param {Map<string, any>} campaigns @param {string} currency @param {number} days */
function budgetColumns(campaigns, currency, days) {
  const entry = (/** @type {any} */ row) => campaigns.get(String(row.campaign_id));
  return [
    { id: "budget", title: "Budget", number: true, cell: (/** @type {any} */ row) => { const e = entry(row); return e?.budget ? html`${format.money(e.budget_micros, currency)} <span class="note">${e.budget}</span>` : format.NONE; } },
    { id: "pace", title: "Spent of budget", number: true, cell: (/** @type {any} */ row) => pace(row, entry(row), days) },
  ];
}

/** The share of a campaign's budget that is spent; marked once there is more spent than budget. @param {any} row @param {any} entry @param {number} days */
function pace(row, entry, days) {
  const budget = entry?.budget ? Number(entry.budget_micros) * (entry.budget === "daily" ? days : 1) : 0;
  if (!budget) return format.NONE;
  const share = Number(row.spend_micros) / budget;
  const title = entry.budget === "daily" && days > 1 ? `of ${days} days' budgets` : `of the ${entry.budget} budget`;
  return html`<span class=${share > 1 ? "over" : ""} title=${title}>${format.percent(share)}${share > 1 ? html`<span class="visually-hidden">, over budget</span>` : nothing}</span>`;
}
