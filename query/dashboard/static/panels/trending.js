/** What is trending: an advertiser's campaigns that have more clicks in the last hour than usual, of many users and from many sources. */

import { html, nothing } from "../vendor/lit-html.js";
import * as format from "../format.js";
import { ask, filter, params } from "../store.js";
import { table } from "../table.js";

const POLL_MS = 60_000;
const SHOWN = 5;
/** Of a steady campaign the score is below 1. */
const LEAST_SCORE = 1.3;

/** Nothing where no campaign trends. @param {import("../ranges.js").Range} range */
export function trending(range) {
  if (!/^\d+$/.test(params.advertiser) || !range.open) return nothing;
  const entry = ask("trending", "v1/trending", { advertiser_id: params.advertiser, k: SHOWN }, POLL_MS);
  if (!entry.value || entry.former) return nothing;
  const rows = entry.value.data.filter((/** @type {any} */ row) => row.score >= LEAST_SCORE);
  if (!rows.length) return nothing;
  return html`<section class="panel" aria-labelledby="trending-title"><h2 id="trending-title">Trending in the last hour</h2>
    ${table({
      caption: "Campaigns that trend",
      rows,
      key: (row) => String(row.campaign_id),
      columns: [
        { id: "name", title: "Campaign", cell: (row) => html`<button type="button" class="link" @click=${() => filter("campaign_id", String(row.campaign_id), true)}><span class="name" dir="auto">${row.name}</span></button>` },
        { id: "volume", title: "Clicks", number: true, cell: (row) => format.integer(row.volume) },
        { id: "usual", title: "Usual in an hour", number: true, cell: (row) => format.integer(Math.round(row.usual)) },
        { id: "growth", title: "Growth", number: true, cell: (row) => `×${format.factor(row.growth)}` },
        { id: "users", title: "Users", number: true, cell: (row) => (row.users_known ? format.percent(row.users) : format.NONE) },
        { id: "sources", title: "Sources", number: true, cell: (row) => format.percent(row.sources) },
        { id: "score", title: "Score", number: true, cell: (row) => format.factor(row.score) },
      ],
    })}
    <p class="note">Growth is by the hourly mean of the seven days before. Users are distinct users by event; a campaign of which none are known counts as the lowest of the others. Sources are the probability that two clicks come from different publishers, countries or devices.</p></section>`;
}
