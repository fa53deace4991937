/** The statement of a month for an advertiser: open until all its days are reconciled, then frozen; made to be printed. */

import { html, nothing } from "../vendor/lit-html.js";
import { exportFile } from "../exports.js";
import { badge } from "../finality.js";
import * as format from "../format.js";
import { isoDate } from "../ranges.js";
import { panelBody, warnings } from "../states.js";
import { ask, choose, params } from "../store.js";
import { table } from "../table.js";

const SUMMED = ["impressions", "clicks", "conversions", "spend_micros"];
const BILLED = [["impressions", "Impressions"], ["clicks", "Clicks"], ["conversions", "Conversions"]];

/** @param {import("../main.js").Context} context */
export function statement(context) {
  const month = /^\d{4}-\d{2}$/.test(params.month) ? params.month : isoDate(context.now, "UTC").slice(0, 7);
  const advertiser = params.advertiser === "*" ? String(context.advertisers[0]?.id ?? "") : params.advertiser;
  const query = { advertiser_id: advertiser, month };
  return html`<div class="no-print"><h1>Statements</h1>
    <form class="controls" @submit=${(/** @type {Event} */ e) => e.preventDefault()}>
      <label>Advertiser <select @change=${(/** @type {any} */ e) => choose({ advertiser: e.target.value })}>
        ${context.advertisers.map((a) => html`<option value=${String(a.id)} ?selected=${String(a.id) === advertiser}>${a.name} (${a.id})</option>`)}
      </select></label>
      <label>Month <input type="month" .value=${month} max=${isoDate(context.now, "UTC").slice(0, 7)} @change=${(/** @type {any} */ e) => choose({ month: e.target.value })}></label>
      <button type="button" @click=${() => print()}>Print</button>
      <button type="button" @click=${() => exportFile("v1/statements", { ...query, format: "csv" }, `adclick_statement_${advertiser}_${month}.csv`)}>Export CSV</button>
    </form></div>
    ${advertiser ? panelBody(ask("statement", "v1/statements", query, 60_000), (answer) => paper(context, answer)) : html`<p class="empty">Choose an advertiser.</p>`}`;
}

/** @param {import("../main.js").Context} context @param {any} answer */
function paper(context, answer) {
  const columns = (/** @type {import("../table.js").Column[]} */ first, /** @type {import("../table.js").Column[]} */ last) => [
    ...first,
    ...BILLED.map(([name, title]) => ({ id: name, title, number: true, cell: (/** @type {any} */ row) => format.integer(row[name]) })),
    { id: "spend", title: "Spend", number: true, cell: (/** @type {any} */ row) => format.money(row.spend_micros, answer.currency) },
    ...last,
  ];
  const total = { ...answer.total, name: "Total", date: "Total" };
  const waiting = new Set(answer.waiting_for ?? []);
  const days = answer.days.filter((/** @type {any} */ day) => waiting.has(day.date) || SUMMED.some((name) => Number(day[name])));
  return html`<article class="panel paper">
    <header><h2>Statement ${answer.month}</h2>
      <p><b dir="auto">${answer.name ?? answer.advertiser_id}</b>, advertiser ${String(answer.advertiser_id)}. Days of ${answer.timezone}. Amounts in ${answer.currency}.</p>
      <p>${answer.status === "final" ? html`<span class="badge reconciled">final</span> All days are reconciled. Issue ${answer.issue}${answer.issued_at ? html`, ${format.time(Date.parse(answer.issued_at), "UTC")} UTC` : nothing}.` : html`<span class="badge provisional">open</span> Not all days are reconciled yet; amounts may still change.`}</p></header>
    ${warnings(answer.warnings)}
    ${answer.waiting_for?.length ? html`<p class="note">Not reconciled: ${answer.waiting_for.join(", ")}.</p>` : nothing}
    ${answer.differences?.length ? differences(answer) : nothing}
    <h3>Campaigns</h3>
    ${table({ caption: "Campaigns of the month", rows: [...answer.campaigns, total], columns: columns([{ id: "name", title: "Campaign", cell: (row) => html`<span class="name" dir="auto">${row.name ?? String(row.id)}</span>` }], []) })}
    <h3>Days</h3>
    ${table({ caption: "Days of the month", rows: [...days, total], columns: columns([{ id: "date", title: "Day", cell: (row) => row.date }], [{ id: "finality", title: "Finality", cell: (row) => (row.finality ? badge(row.finality) : nothing) }]) })}
    ${days.length < answer.days.length ? html`<p class="note">${format.integer(answer.days.length - days.length)} days without events are left out; the export has them.</p>` : nothing}
    <footer><p class="note">Digest <code class="digest">${answer.digest}</code></p></footer>
  </article>`;
}

/** @param {any} answer */
function differences(answer) {
  return html`<section><h3>Changed since issue ${answer.previous_issue?.issue}</h3>
    ${table({
      caption: "What changed since the issue before",
      rows: answer.differences,
      columns: [
        { id: "date", title: "Day", cell: (row) => row.date ?? "" },
        { id: "campaign", title: "Campaign", cell: (row) => String(row.name ?? row.campaign_id ?? "") },
        ...BILLED.map(([name, title]) => ({ id: name, title, number: true, cell: (/** @type {any} */ row) => `${format.integer(row.from?.[name])} → ${format.integer(row.to?.[name])}` })),
        { id: "spend", title: "Spend", number: true, cell: (row) => `${format.money(row.from?.spend_micros, answer.currency)} → ${format.money(row.to?.spend_micros, answer.currency)}` },
      ],
    })}</section>`;
}
