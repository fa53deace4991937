/** What was unusual in a range: episodes of an advertiser's campaigns, with the numbers that led to them. */

import { html, nothing } from "../vendor/lit-html.js";
import * as format from "../format.js";
import { measureOf, text } from "../measures.js";
import { ask, filter, params } from "../store.js";

const POLL_MS = 300_000;
const SHOWN = 8;

/** @param {import("../main.js").Context} context @param {import("../ranges.js").Range} range @param {string} zone */
export function anomalies(context, range, zone) {
  if (!/^\d+$/.test(params.advertiser)) return nothing;
  const entry = ask("anomalies", "v1/anomalies", { advertiser_id: params.advertiser, since: "-30d", severity: "critical" }, POLL_MS);
  if (!entry.value || entry.former) return nothing;
  const chosen = params.filters.campaign_id;
  const episodes = entry.value.data.filter((/** @type {any} */ e) =>
    Date.parse(e.end) > range.start && Date.parse(e.start) < range.end && (!chosen || chosen.includes(String(e.campaign_id))));
  if (!episodes.length) return nothing;
  return html`<section class="panel" aria-labelledby="anomalies-title"><h2 id="anomalies-title">Unusual in this range</h2>
    <ul class="anomalies">${episodes.slice(0, SHOWN).map((/** @type {any} */ e) => html`<li>
      <button type="button" class="link" @click=${() => filter("campaign_id", String(e.campaign_id), true)}><span class="name" dir="auto">${e.name}</span></button>
      <span>${e.text}: ${text(measureOf(e.measure), e.value, context.currency)}, where ${text(measureOf(e.measure), e.expected, context.currency)} an hour was to be expected</span>
      <span class="note">${format.range(Date.parse(e.start), Date.parse(e.end), zone)}${e.open ? ", still going on" : ""}</span></li>`)}</ul>
    ${episodes.length > SHOWN ? html`<p class="note">The newest ${SHOWN} of ${episodes.length}.</p>` : nothing}</section>`;
}
