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
const SHOWN = 50;
/** So many rows of the order are looked through for a search. */
const SEARCHED = 1000;
const POLL_MS = 10_000;
const SETTLED_POLL_MS = 120_000;
const countries = new Intl.DisplayNames([navigator.language], { type: "region", fallback: "code" });

/** How many rows are asked for. */
export function rowLimit() {
  return params.search ? SEARCHED : SHOWN;
}

/** What a value of a dimension is called. @param {string} dimension @param {any} row */
export function nameOf(dimension, row) {
  const value = row[dimension];
  if (dimension === "country") return /^[A-Z]{2}$/.test(value) && value !== "ZZ" ? `${countries.of(value)} (${value})` : `Unknown (${value})`;
  const name = row[DIMENSIONS.find((d) => d.id === dimension)?.name ?? ""];
  return name === undefined || name === String(value) ? String(value) : String(name);
}

/** @param {import("../main.js").Context} context @param {import("../ranges.js").Range} range @param {import("../api.js").Query} seriesQuery @param {Map<string, any> | null} users of campaigns */
export function breakdown(context, range, seriesQuery, users) {
  const dimension = DIMENSIONS.find((d) => d.id === params.dimension) ?? DIMENSIONS[0];
  const query = { ...seriesQuery, ...totalRange(range, context.now), granularity: "total", group_by: dimension.id, order: params.by };
  const shown = { ...query, names: dimension.name ? true : undefined, compare: params.compare === "none" ? undefined : params.compare };
  const full = { ...shown, limit: rowLimit(), totals: true };
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
    ${panelBody(entry, (answer) => rowsOf(context, dimension, answer, dimension.id === "campaign_id" ? users : null))}
  </section>`;
}

/** @param {import("../main.js").Context} context @param {(typeof DIMENSIONS)[number]} dimension @param {any} answer @param {Map<string, any> | null} users */
function rowsOf(context, dimension, answer, users) {
  // While another dimension is loaded, the former one's rows must not show under its heading.
  if (answer.data.length && !(dimension.id in answer.data[0])) return html`<p class="loading" role="status">Loading…</p>`;
  const measure = measureOf(params.measure);
  const share = SUMMED.includes(measure.id) ? measure.id : "spend_micros";
  const whole = Number(answer.totals?.[share] ?? 0);
  const search = params.search.toLocaleLowerCase();
  const rows = answer.data.filter((/** @type {any} */ row) => !search || `${nameOf(dimension.id, row)} ${row[dimension.id]}`.toLocaleLowerCase().includes(search));
  const chosen = new Set(params.filters[dimension.id] ?? []);
  const budgets = dimension.id === "campaign_id" ? budgetsOf(params.advertiser) : null;
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
        ...(dimension.id === "campaign_id" && params.advertiser === "*" ? [{ id: "owner", title: "Advertiser", cell: (/** @type {any} */ row) => ownerOf(context, row.campaign_id) }] : []),
        ...(budgets ? budgetColumns(budgets, context.currency) : []),
        ...[measureOf("spend_micros"), ...MEASURES.filter((m) => m.id !== "spend_micros")].map((m) => ({
          id: m.id, title: m.title, sort: m.id, number: true,
          cell: (/** @type {any} */ row) => html`${text(m, row[m.id], context.currency)}${m === measure && answer.comparison ? html` <span class="note">${format.signedPercent(change(row[m.id], row[`previous_${m.id}`]))}</span>` : nothing}`,
        })),
        ...(users ? [{ id: "users", title: "Users", number: true, cell: (/** @type {any} */ row) => format.integer(users.get(String(row.campaign_id))) }] : []),
        ...(dimension.id === "campaign_id" && context.campaigns.size ? [{ id: "status", title: "Status", cell: (/** @type {any} */ row) => context.campaigns.get(String(row.campaign_id))?.status ?? format.NONE }] : []),
        { id: "finality", title: "Finality", cell: (row) => badge(row.finality) },
      ],
    })}
    ${budgets ? html`<p class="note">Budgets are as of now, whatever range is shown: a day's is that of the campaign's own day, in its own time zone, and so is when it is gone.</p>` : nothing}
    ${dimension.id === "campaign_id" && params.advertiser === "*" ? html`<p class="note">Choose one advertiser to see budgets and what is spent of them.</p>` : nothing}
    ${answer.next_cursor ? html`<p class="note">The first ${answer.data.length} by this order; the export has all.</p>` : nothing}
    ${warnings(answer.warnings)}`;
}

/** The advertiser of a campaign, as the directory has it. @param {import("../main.js").Context} context @param {any} campaign */
function ownerOf(context, campaign) {
  const id = context.campaigns.get(String(campaign))?.advertiser_id;
  if (id === undefined) return format.NONE;
  const name = context.advertisers.find((a) => String(a.id) === String(id))?.name ?? String(id);
  return html`<button type="button" class="link" @click=${() => choose({ advertiser: String(id), filters: {} })}><span class="name" dir="auto">${name}</span></button>`;
}

/** Budgets of the campaigns of one advertiser, by campaign: now, whatever the range. @param {string} advertiser @returns {Map<string, any> | null} */
function budgetsOf(advertiser) {
  if (!/^\d+$/.test(advertiser)) return null;
  const entry = ask("budgets", "v1/budgets", { advertiser_id: advertiser }, POLL_MS);
  return entry.value && !entry.former && entry.value.rows ? new Map(entry.value.data.map((/** @type {any} */ b) => [String(b.campaign_id), b])) : null;
}

/** What is spent of budgets, at which pace, and until when they last. @param {Map<string, any>} budgets @param {string} currency */
function budgetColumns(budgets, currency) {
  const budgetOf = (/** @type {any} */ row) => budgets.get(String(row.campaign_id));
  const cell = (/** @type {(budget: any) => unknown} */ show) => (/** @type {any} */ row) => (budgetOf(row) ? show(budgetOf(row)) : format.NONE);
  return [
    { id: "budget", title: "Budget", number: true, cell: cell((b) => html`${format.money(b.budget_micros, currency)} <span class="note">${b.budget === "daily" ? "a day" : "in total"}</span>`) },
    { id: "spent", title: "Spent of it", number: true, cell: cell((b) => html`<span class=${b.state === "on-track" ? "" : "over"} title=${spentOf(b, currency)}>${format.percent(b.share)}</span><span class="visually-hidden">, ${b.state.replace("-", " ")}</span>`) },
    { id: "gone", title: "Gone at", cell: cell((b) => (b.state === "exhausted" ? "exhausted" : b.exhausted_at ? html`<span class="nowrap" title=${`in ${b.timezone}, if every hour is like the last one`}>${format.time(Date.parse(b.exhausted_at), b.timezone)}</span>` : format.NONE)) },
  ];
}

/** @param {any} budget @param {string} currency */
function spentOf(budget, currency) {
  const since = format.time(Date.parse(budget.start), budget.timezone);
  const pace = budget.pace === null ? "" : `; ${budget.pace} times as fast as evenly`;
  return `${format.money(budget.spent_micros, currency)} since ${since} (${budget.timezone})${pace}`;
}
