/** How many users a range reached, and how often each of them. Estimates, which the router counts by whole hours. */

import { html, nothing } from "../vendor/lit-html.js";
import * as format from "../format.js";
import { wholeHours } from "../ranges.js";
import { warnings } from "../states.js";
import { ask, params } from "../store.js";
import { DIMENSIONS } from "./breakdown.js";
import { subjectOf } from "./controls.js";

const POLL_MS = 30_000;
const SETTLED_POLL_MS = 120_000;

/**
 * The users of a range, and where the breakdown is by campaign those of its campaigns. `reason`: why there are none.
 * @typedef {{reason: string, entry: import("../store.js").Entry | null}} Reach
 */

/** @param {import("../ranges.js").Range} range @param {number} limit of campaigns @returns {Reach} */
export function readReach(range, limit) {
  const other = Object.keys(params.filters).find((dimension) => dimension !== "campaign_id");
  if (other) {
    const name = (DIMENSIONS.find((d) => d.id === other)?.one ?? other).toLowerCase();
    return { reason: `Users are not counted by ${name}: remove that filter to see how many there were.`, entry: null };
  }
  const campaigns = params.filters.campaign_id;
  const byCampaign = params.dimension === "campaign_id" ? { group_by: "campaign_id", order: params.by, limit } : {};
  const query = {
    ...subjectOf(params), ...wholeHours(range), granularity: "total", users: true, totals: true, ...byCampaign,
    filter: campaigns ? [`campaign_id:${campaigns.join(",")}`] : [],
  };
  return { reason: "", entry: ask("reach", "v1/metrics", query, range.open ? POLL_MS : SETTLED_POLL_MS) };
}

/** Users and frequency, behind the other figures. @param {Reach} reach */
export function reachFigures({ entry }) {
  if (!entry) return nothing;
  const totals = entry.value?.totals ?? {};
  return html`${figure("users", "Users reached", format.integer(totals.users), `about, ${accuracy(entry.value)}`)}
    ${figure("frequency", "Frequency", totals.frequency === null || totals.frequency === undefined ? format.NONE : format.factor(totals.frequency), "events by user")}`;
}

/** @param {string} id @param {string} title @param {string} value @param {string} caption */
function figure(id, title, value, caption) {
  return html`<li class="figure"><div class="still">
    <span class="figure-title">${title}</span>
    <span class="figure-value" data-measure=${id}>${value}</span>
    <span class="figure-change">${caption}</span></div></li>`;
}

/** How near users are, or why there are none. @param {Reach} reach @param {import("../ranges.js").Range} range @param {string} zone */
export function reachNote({ reason, entry }, range, zone) {
  if (!entry) return html`<p class="note">${reason}</p>`;
  if (entry.value === null) return entry.error ? html`<p class="note">Users are not known: ${entry.error.message}</p>` : nothing;
  const { start } = wholeHours(range);
  const since = Date.parse(start) < range.start ? ` Users are counted by whole hours, here since ${format.time(Date.parse(start), zone)}, and frequency is of the same hours.` : "";
  return html`<p class="note">Users are estimates, ${accuracy(entry.value)} in 95 of 100 cases.${since}</p>
    ${warnings(entry.value.warnings?.filter((/** @type {string} */ w) => w.startsWith("users")))}`;
}

/** The users of each campaign, by its number; null where they are not known. @param {Reach} reach @returns {Map<string, any> | null} */
export function usersByCampaign({ entry }) {
  const rows = entry?.value?.data;
  if (!rows || entry?.former || (rows.length && !("campaign_id" in rows[0]))) return null;
  return new Map(rows.map((/** @type {any} */ row) => [String(row.campaign_id), row.users]));
}

/** @param {any} answer */
function accuracy(answer) {
  return answer?.users_standard_error ? `within ${format.factor(200 * answer.users_standard_error)} %` : "";
}
