/** Alerts: those that are open, and those of the last week; acknowledge them, or mute what is like them. */

import { html, nothing } from "../vendor/lit-html.js";
import { repeat } from "../vendor/directives/repeat.js";
import { request } from "../api.js";
import * as format from "../format.js";
import { problemText } from "../states.js";
import { announce, ask, filter, params, refresh } from "../store.js";

const POLL_MS = 10_000;
const MUTES_POLL_MS = 30_000;
const RECENT = "-7d";
const SHOWN = 10;
const ASKED = 50;
const DAY_S = 86_400;

/**
 * What is known of an advertiser's alerts, the newest first, muted ones among them.
 * @typedef {{alerts: any[], mutes: any[], error: import("../api.js").Problem | null}} Known
 */

/** @param {string} advertiser its id; 0: the operator's alerts; *: those of all @returns {Known} */
export function readAlerts(advertiser) {
  const advertiser_id = advertiser === "*" ? undefined : advertiser;
  const query = { advertiser_id, muted: true, limit: ASKED };
  const entries = [
    ask("alerts-open", "v1/alerts", { ...query, state: "open" }, POLL_MS),
    ask("alerts-recent", "v1/alerts", { ...query, since: RECENT }, POLL_MS),
    ask("alerts-mutes", "v1/mutes", { advertiser_id }, MUTES_POLL_MS),
  ];
  const [open, recent, mutes] = entries.map((entry) => (entry.former ? [] : (entry.value?.data ?? [])));
  /** @type {Map<string, any>} */
  const byId = new Map();
  // One that was asked for a moment later may be newer.
  for (const alert of [...open, ...recent]) if (Number(byId.get(alert.id)?.version ?? 0) <= Number(alert.version)) byId.set(alert.id, alert);
  const alerts = [...byId.values()].sort((a, b) => Date.parse(b.opened) - Date.parse(a.opened) || (a.id < b.id ? -1 : 1));
  return { alerts, mutes, error: entries.find((entry) => entry.error && entry.value === null)?.error ?? null };
}

/** The parts of a range in which alerts hold, for the chart. @param {Known} known @param {import("../ranges.js").Range} range @returns {import("../chart.js").Band[]} */
export function alertBands(known, range) {
  const chosen = params.filters.campaign_id;
  return known.alerts
    .filter((a) => a.state !== "withdrawn" && !a.muted_until && (!chosen || chosen.includes(String(a.campaign_id))))
    .map((a) => ({ start: Date.parse(a.opened), end: a.ended ? Date.parse(a.ended) : range.end, critical: a.severity === "critical", text: a.summary }))
    .filter((band) => band.start < range.end && band.end > range.start);
}

/**
 * Nothing where there is neither an alert nor a mute.
 * @param {import("../main.js").Context} context @param {Known} known @param {string} zone @param {string} title
 */
export function alertPanel(context, known, zone, title) {
  const chosen = params.filters.campaign_id;
  const alerts = known.alerts.filter((a) => !chosen || chosen.includes(String(a.campaign_id)));
  const unmuted = alerts.filter((a) => !a.muted_until);
  const muted = alerts.filter((a) => a.muted_until);
  if (!unmuted.length && !muted.length && !known.mutes.length && !known.error) return nothing;
  return html`<section class="panel" aria-labelledby="alerts-title"><h2 id="alerts-title">${title}</h2>
    ${known.error ? problemText(known.error) : nothing}
    ${unmuted.length ? list(context, unmuted.slice(0, SHOWN), zone) : html`<p class="note">None that is not muted.</p>`}
    ${unmuted.length > SHOWN ? html`<p class="note">The newest ${SHOWN} of ${unmuted.length}${unmuted.length >= ASKED ? " or more" : ""}.</p>` : nothing}
    ${muted.length || known.mutes.length ? html`<details><summary>Muted: ${muted.length}</summary>${list(context, muted.slice(0, SHOWN), zone)}${muteList(context, known.mutes, zone)}</details>` : nothing}
  </section>`;
}

/** @param {import("../main.js").Context} context @param {any[]} alerts @param {string} zone */
function list(context, alerts, zone) {
  const acts = context.access.may_act_on_alerts;
  return html`<ul class="alerts">${repeat(alerts, (a) => a.id, (a) => html`<li class=${a.state}>
    <span class="badge ${a.severity}">${a.severity}</span>
    <span class="summary" dir="auto">${a.summary}</span>
    ${campaign(context, a)}
    <span class="note">${when(a, zone)}${a.acknowledged ? ` · acknowledged by ${a.acknowledged.by}${isSeen(a) ? "" : ", and worse since"}` : ""}${a.muted_until ? ` · muted until ${format.time(Date.parse(a.muted_until), zone)}` : ""}</span>
    ${acts ? html`<span class="actions">
      ${isSeen(a) || a.state === "withdrawn" ? nothing : html`<button type="button" @click=${() => acknowledge(a)}>Acknowledge${about(a)}</button>`}
      ${a.muted_until ? nothing : html`<button type="button" @click=${() => mute(a, 1)}>Mute for a day${about(a)}</button>
        <button type="button" @click=${() => mute(a, 7)}>Mute for a week${about(a)}</button>`}</span>` : nothing}
  </li>`)}</ul>`;
}

/** What a button is about, for those who do not see what it stands beside. @param {any} alert */
function about(alert) {
  return html`<span class="visually-hidden">: ${alert.summary}</span>`;
}

/** @param {any} alert */
function isSeen(alert) {
  return alert.acknowledged && Number(alert.acknowledged.version) >= Number(alert.version);
}

/** @param {import("../main.js").Context} context @param {any} alert */
function campaign(context, alert) {
  const id = String(alert.campaign_id);
  if (id === "0") return nothing;
  return html`<button type="button" class="link" @click=${() => filter("campaign_id", id, true)}><span class="name" dir="auto">${context.campaigns.get(id)?.name ?? `campaign ${id}`}</span></button>`;
}

/** @param {any} alert @param {string} zone */
function when(alert, zone) {
  const opened = Date.parse(alert.opened);
  if (alert.state === "open") return `since ${format.time(opened, zone)}`;
  const range = alert.ended ? format.range(opened, Date.parse(alert.ended), zone) : format.time(opened, zone);
  return `${range}, ${alert.state === "withdrawn" ? "withdrawn: late numbers have shown that it was nothing" : "over"}`;
}

/** @param {import("../main.js").Context} context @param {any[]} mutes @param {string} zone */
function muteList(context, mutes, zone) {
  const subject = (/** @type {any} */ m) => `${m.kind ?? "all kinds"}, ${m.campaign_id === null ? "all campaigns" : String(m.campaign_id) === "0" ? "about no campaign" : (context.campaigns.get(String(m.campaign_id))?.name ?? `campaign ${m.campaign_id}`)}`;
  return html`<ul class="alerts" aria-label="Mutes">${repeat(mutes, (m) => m.id, (m) => html`<li><span class="summary" dir="auto">${subject(m)}</span>
    <span class="note">until ${format.time(Date.parse(m.until), zone)}, by ${m.by}</span>
    ${context.access.may_act_on_alerts ? html`<span class="actions"><button type="button" @click=${() => unmute(m)}>End this mute<span class="visually-hidden">: ${subject(m)}</span></button></span>` : nothing}</li>`)}</ul>`;
}

/** @param {any} alert */
function acknowledge(alert) {
  return act("Acknowledged.", `v1/alerts/${encodeURIComponent(alert.id)}/acknowledge`, "POST", { version: alert.version });
}

/** @param {any} alert @param {number} days */
function mute(alert, days) {
  const until = new Date(Date.now() + days * DAY_S * 1000).toISOString();
  const { kind, advertiser_id, campaign_id } = alert;
  return act(`Muted for ${days === 1 ? "a day" : "a week"}.`, "v1/mutes", "PUT", { kind, advertiser_id, campaign_id, until });
}

/** @param {any} one */
function unmute(one) {
  return act("The mute has ended.", `v1/mutes/${encodeURIComponent(one.id)}`, "DELETE");
}

/** @param {string} done @param {string} path @param {string} method @param {any} [body] */
async function act(done, path, method, body) {
  try {
    await request(path, { method, body });
    announce(done);
  } catch (error) {
    announce(`Not done: ${error instanceof Error ? error.message : String(error)}`);
  }
  refresh("alerts-");
}
