/** A bill explained: the reconciled days of a month, and for one day how what was shown became what is billed. */

import { html, nothing, svg } from "../vendor/lit-html.js";
import { exportPages } from "../exports.js";
import * as format from "../format.js";
import { subjectOf, zoneOf } from "../panels/controls.js";
import { isoDate, ofIsoDate } from "../ranges.js";
import { panelBody } from "../states.js";
import { ask, choose, params } from "../store.js";
import { table } from "../table.js";

const CAUSES = /** @type {Record<string, string>} */ ({
  late: "came more than an hour late", shed: "sampled under overload", doubt: "counted while in doubt", open: "not yet counted by the stream",
  "cross-partition-duplicate": "copies in several partitions", "expired-horizon-duplicate": "copies more than an hour apart",
  "conflicting-copy": "copies that differ", "dead-letter-replayed": "mended and sent again", "other-region": "sent to another region", unexplained: "unexplained",
});
const BILLED = [["impressions", "Impressions"], ["clicks", "Clicks"], ["conversions", "Conversions"], ["spend_micros", "Spend"]];
const DAYS_SHOWN = 35;
/** Digits of an amount that is shown to the last micro, so that steps add up. */
const MICROS = 6;
const POLL_MS = 60_000;

/** @param {import("../main.js").Context} context */
export function bill(context) {
  const today = isoDate(context.now, "UTC");
  const from = isoDate(ofIsoDate(today, "UTC", -DAYS_SHOWN + 1), "UTC");
  const subject = subjectOf(params).advertiser_id;
  const advertiser = subject && subject !== "*" ? subject : undefined;
  const entry = ask("days", "v1/reconciliations", { from, to: today, advertiser_id: advertiser }, 30_000);
  return html`<h1>Bills</h1>
    <p>Every night each day of UTC is recomputed from the archive. What that gives is billed; here is how it differs from what was shown before.
      Events that come up to an hour late are counted at once. Those that come later are added by the nightly run alone.</p>
    ${advertiserLine(context)}
    <section class="panel" aria-labelledby="days-title"><h2 id="days-title">Days</h2>
      ${panelBody(entry, (answer) => calendar(context, answer.data, from, today))}</section>
    ${/^\d{4}-\d{2}-\d{2}$/.test(params.date) && Date.parse(params.date) ? day(context, params.date, advertiser) : html`<p class="empty">Choose a reconciled day to see its causes.</p>`}`;
}

/** @param {import("../main.js").Context} context */
function advertiserLine(context) {
  return html`<form class="controls" @submit=${(/** @type {Event} */ e) => e.preventDefault()}><label>Advertiser <select @change=${(/** @type {any} */ e) => choose({ advertiser: e.target.value })}>
    ${context.access.admin ? html`<option value="*" ?selected=${params.advertiser === "*"}>All advertisers</option>` : nothing}
    ${context.advertisers.map((a) => html`<option value=${String(a.id)} ?selected=${String(a.id) === params.advertiser}>${a.name} (${a.id})</option>`)}
  </select></label>
    ${zoneOf(context) === "UTC" ? nothing : html`<span class="note">Days here are of UTC; the overview shows days of ${zoneOf(context)}.</span>`}</form>`;
}

/** @param {import("../main.js").Context} context @param {any[]} runs @param {string} from @param {string} to */
function calendar(context, runs, from, to) {
  // A day may have several runs: the current one is billed.
  const byDate = new Map(runs.filter((run) => run.current).map((run) => [run.date, run]));
  const cells = [];
  for (let ms = Date.parse(from); ms <= Date.parse(to); ms += 86_400_000) cells.push(new Date(ms).toISOString().slice(0, 10));
  return html`<ol class="calendar">${cells.map((date) => {
    const run = byDate.get(date);
    const label = format.time(Date.parse(date), "UTC", "day");
    if (!run) return html`<li class="day open"><span>${label}</span><span class="note">${date === to ? "today" : "no run"}</span></li>`;
    return html`<li class="day ${run.alert ? "alert" : "sealed"}"><button type="button" aria-pressed=${params.date === date} @click=${() => choose({ date })}>
      <span>${label}</span><span class="note">${run.drift === undefined || run.drift === null ? "reconciled" : `drift ${format.percent(Number(run.drift))}`}${run.alert ? ", alert" : ""}</span></button></li>`;
  })}</ol>`;
}

/** @param {import("../main.js").Context} context @param {string} date @param {string | undefined} advertiser */
function day(context, date, advertiser) {
  const causes = ask("causes", `v1/reconciliations/${date}/causes`, { advertiser_id: advertiser }, POLL_MS);
  const ledger = ask("ledger", `v1/reconciliations/${date}/ledger`, { advertiser_id: advertiser, limit: 200 }, POLL_MS);
  const title = format.time(Date.parse(date), "UTC", "day");
  return html`<section class="panel" aria-labelledby="causes-title">
      <div class="panel-head"><h2 id="causes-title">${title}: from shown to billed</h2></div>
      ${panelBody(causes, (answer) => causesOf(context, answer))}
    </section>
    <section class="panel" aria-labelledby="ledger-title">
      <div class="panel-head"><h2 id="ledger-title">${title}: the ledger</h2>
        <button type="button" @click=${() => exportLedger(date, advertiser)}>Export CSV</button></div>
      ${panelBody(ledger, (answer) => ledgerTable(context, answer))}
    </section>`;
}

/** @param {import("../main.js").Context} context @param {any} answer */
function causesOf(context, answer) {
  const cell = (/** @type {any} */ value, /** @type {string} */ name, signed = false) => {
    const text = name === "spend_micros" ? format.money(value, context.currency, MICROS) : format.integer(value);
    return signed && value > 0 ? `+${text}` : text;
  };
  const rows = [
    { what: "Shown before", values: answer.shown },
    ...answer.causes.map((/** @type {any} */ c) => ({ what: CAUSES[c.cause] ?? c.cause, values: c, change: true })),
    { what: "Billed", values: answer.billed },
  ];
  const added = answer.causes.find((/** @type {any} */ c) => c.cause === "late")?.clicks ?? 0;
  return html`${waterfall(context, answer)}
    <p>Of ${format.integer(answer.billed.clicks)} clicks billed, <b data-late="counted">${format.integer(answer.counted_late.clicks)}</b> came late by up to an hour, and were counted at once;
      <b data-late="added">${format.integer(added)}</b> came later than that, and were added by this run.</p>
    ${table({
      caption: "From shown to billed",
      rows,
      columns: [
        { id: "what", title: "Step", cell: (row) => row.what },
        ...BILLED.map(([name, title]) => ({ id: name, title, number: true, cell: (/** @type {any} */ row) => cell(row.values[name], name, row.change) })),
      ],
    })}
    <dl class="facts">
      <div><dt>Run</dt><dd><code>${answer.run_id}</code></dd></div>
      <div><dt>Published</dt><dd>${answer.published_at ? format.time(Date.parse(answer.published_at), "UTC", "second") : format.NONE} UTC</dd></div>
      ${answer.digest ? html`<div><dt>Digest</dt><dd><code class="digest">${answer.digest}</code></dd></div>` : nothing}
      ${answer.file_count ? html`<div><dt>Archive files</dt><dd>${format.integer(answer.file_count)}</dd></div>` : nothing}
    </dl>
    ${answer.files?.length ? html`<details><summary>The files of the run</summary>${filesTable(answer.files)}</details>` : nothing}`;
}

/** @param {any[]} files */
function filesTable(files) {
  return table({
    caption: "Files that the run read",
    rows: files,
    columns: [
      { id: "p", title: "File", cell: (r) => html`<code>${r.path.split("/").slice(-3).join("/")}</code>` },
      { id: "b", title: "Bytes", number: true, cell: (r) => format.integer(r.bytes) },
      { id: "s", title: "SHA-256", cell: (r) => html`<code>${r.sha256}</code>` },
    ],
  });
}

/** The waterfall of a measure. Only what changed is drawn to scale: a bill differs by thousandths. @param {import("../main.js").Context} context @param {any} answer */
function waterfall(context, answer) {
  const name = "spend_micros";
  const steps = answer.causes.filter((/** @type {any} */ c) => Number(c[name]) !== 0);
  if (!steps.length) return html`<p>Nothing changed: the day is billed as it was shown.</p>`;
  const width = 640;
  const rowHeight = 30;
  const label = 230;
  let at = 0;
  const bars = steps.map((/** @type {any} */ c) => {
    const from = at;
    at += Number(c[name]);
    return { text: CAUSES[c.cause] ?? c.cause, from, to: at, money: `${Number(c[name]) > 0 ? "+" : ""}${format.money(c[name], context.currency)}` };
  });
  const low = Math.min(0, ...bars.map((/** @type {any} */ b) => Math.min(b.from, b.to)));
  const high = Math.max(0, ...bars.map((/** @type {any} */ b) => Math.max(b.from, b.to)));
  const x = (/** @type {number} */ v) => label + ((v - low) / (high - low || 1)) * (width - label - 110);
  return html`<figure class="waterfall"><figcaption>Spend: what changed after it was shown (${format.money(answer.shown[name], context.currency)} → ${format.money(answer.billed[name], context.currency)})</figcaption>
    <svg viewBox="0 0 ${width} ${bars.length * rowHeight + 8}" role="img" aria-label="Waterfall of spend by cause; the table below has the numbers">
      ${bars.map((/** @type {any} */ bar, /** @type {number} */ n) => svg`
        <text x="0" y=${n * rowHeight + 20}>${bar.text}</text>
        <rect class=${bar.to >= bar.from ? "rise" : "fall"} x=${x(Math.min(bar.from, bar.to))} y=${n * rowHeight + 6} width=${Math.max(2, Math.abs(x(bar.to) - x(bar.from)))} height="18" rx="2" />
        <text x=${x(Math.max(bar.from, bar.to)) + 6} y=${n * rowHeight + 20}>${bar.money}</text>`)}
    </svg></figure>`;
}

/** @param {string} date @param {string | undefined} advertiser */
function exportLedger(date, advertiser) {
  const names = ["time", "campaign_id", "advertiser_id", "ad_id", "publisher_id", "country", "device", "cause"];
  const parts = ["stream", "share", "exact"].flatMap((part) => BILLED.map(([measure]) => [part, measure]));
  return exportPages(`v1/reconciliations/${date}/ledger`, { advertiser_id: advertiser }, `adclick_ledger_${date}.csv`, [
    ...names.map((name) => /** @type {[string, (row: any) => unknown]} */ ([name, (row) => row[name]])),
    ...parts.map(([part, measure]) => /** @type {[string, (row: any) => unknown]} */ ([`${part}_${measure}`, (row) => row[part][measure]])),
  ]);
}

/** @param {import("../main.js").Context} context @param {any} answer */
function ledgerTable(context, answer) {
  const pair = (/** @type {any} */ row, /** @type {string} */ name) => {
    const [from, to] = [row.stream[name], row.exact[name]];
    const text = (/** @type {any} */ v) => (name === "spend_micros" ? format.money(v, context.currency, MICROS) : format.integer(v));
    return from === to ? text(to) : html`<s>${text(from)}</s> <ins>${text(to)}</ins>`;
  };
  return html`${table({
    caption: "Cells of the ledger",
    rows: answer.data,
    empty: "No cell differs: every number was shown as it is billed.",
    columns: [
      { id: "time", title: "Hour (UTC)", cell: (row) => format.time(Date.parse(row.time), "UTC") },
      { id: "campaign", title: "Campaign", cell: (row) => html`<span class="name" dir="auto">${context.campaigns.get(String(row.campaign_id))?.name ?? String(row.campaign_id)}</span>` },
      { id: "ad", title: "Ad", number: true, cell: (row) => String(row.ad_id) },
      { id: "publisher", title: "Publisher", number: true, cell: (row) => String(row.publisher_id) },
      { id: "country", title: "Country", cell: (row) => row.country },
      { id: "device", title: "Device", cell: (row) => row.device },
      { id: "cause", title: "Cause", cell: (row) => html`<span class="words">${CAUSES[row.cause] ?? row.cause}</span>` },
      ...BILLED.map(([name, title]) => ({ id: name, title, number: true, cell: (/** @type {any} */ row) => pair(row, name) })),
    ],
  })}
  ${answer.next_cursor ? html`<p class="note">The first 200 cells.</p>` : nothing}`;
}
