/** Dead letters: rejected events by reason and over time, with samples; edit one and send it again. */

import { html, nothing } from "../vendor/lit-html.js";
import { getJson } from "../api.js";
import * as format from "../format.js";
import { panelBody } from "../states.js";
import { ask, changed, choose, params, refresh } from "../store.js";
import { table } from "../table.js";

/** @type {any} */
let editing = null;
let outcome = "";

/** @param {import("../main.js").Context} _context */
export function deadLetters(_context) {
  const reason = params.filters.reason?.[0];
  const entry = ask("letters", "v1/dead-letters", { reason, limit: 50 }, 15_000);
  return html`<h1>Dead letters</h1>
    <p>Events that were refused, each with its reason. Late ones are counted by the nightly run; the others can be mended and sent again.</p>
    ${panelBody(entry, (answer) => html`
      <section class="panel" aria-labelledby="reasons-title"><h2 id="reasons-title">By reason</h2>${reasons(answer.counts ?? [])}</section>
      <section class="panel" aria-labelledby="letters-title"><div class="panel-head"><h2 id="letters-title">Newest${reason ? `: ${reason}` : ""}</h2>
        ${reason ? html`<button type="button" @click=${() => choose({ filters: {} })}>All reasons</button>` : nothing}</div>
        <p role="status">${outcome}</p>${letters(answer.data)}</section>`)}
    ${editing ? editor() : nothing}`;
}

/** @param {any[]} counts */
function reasons(counts) {
  /** @type {Map<string, number>} */
  const totals = new Map();
  for (const c of counts) totals.set(c.reason, (totals.get(c.reason) ?? 0) + Number(c.count));
  const rows = [...totals].map(([reason, count]) => ({ reason, count })).sort((a, b) => b.count - a.count);
  const all = rows.reduce((sum, row) => sum + row.count, 0);
  return table({
    caption: "Dead letters by reason",
    rows,
    empty: "No event has been refused.",
    columns: [
      { id: "r", title: "Reason", cell: (r) => html`<button type="button" class="link" @click=${() => choose({ filters: { reason: [r.reason] } })}>${r.reason}</button>` },
      { id: "s", title: "Share", cell: (r) => html`<meter min="0" max="1" .value=${all ? r.count / all : 0} aria-label="share of all"></meter>` },
      { id: "c", title: "Letters", number: true, cell: (r) => format.integer(r.count) },
    ],
  });
}

/** @param {any[]} rows */
function letters(rows) {
  return table({
    caption: "Dead letters, newest first",
    rows,
    empty: "None.",
    columns: [
      { id: "s", title: "Message", cell: (r) => html`<code>${r.source}</code>` },
      { id: "t", title: "Time (UTC)", cell: (r) => html`<span class="nowrap">${r.time ? format.time(Date.parse(r.time), "UTC", "second") : ""}</span>` },
      { id: "r", title: "Reason", cell: (r) => html`<span class="nowrap">${r.reason}</span>` },
      { id: "a", title: "Actions", cell: (r) => (r.sent_again ? html`<span class="note">sent again</span>` : r.reason === "too-late" ? html`<span class="note words">the nightly run counts it</span>` : r.truncated ? html`<span class="note">too long to edit here: adclick dead-letters</span>` : html`<button type="button" @click=${() => edit(r)}>Edit and send again<span class="visually-hidden"> ${r.source}</span></button>`) },
      { id: "d", title: "Detail", cell: (r) => html`<span class="clip" dir="auto" title=${r.detail}>${format.withDurations(r.detail ?? "")}</span>` },
      { id: "v", title: "Event", cell: (r) => html`<code class="clip" dir="auto">${r.value ?? "null"}</code>` },
    ],
  });
}

/** @param {any} letter */
function edit(letter) {
  editing = letter;
  outcome = "";
  changed();
  requestAnimationFrame(() => requestAnimationFrame(() => document.getElementById("letter-value")?.focus()));
}

function editor() {
  return html`<form class="panel" aria-labelledby="edit-title" @submit=${send}>
    <h2 id="edit-title">Edit ${editing.source}</h2>
    <p>${editing.reason}: <span dir="auto">${format.withDurations(editing.detail ?? "")}</span></p>
    <label>The event as JSON <textarea id="letter-value" rows="8" spellcheck="false" .value=${editing.value ?? ""}></textarea></label>
    <div class="row"><button type="submit">Send again</button><button type="button" @click=${() => { editing = null; changed(); }}>Cancel</button></div>
  </form>`;
}

/** @param {Event} event */
async function send(event) {
  event.preventDefault();
  const value = /** @type {HTMLTextAreaElement} */ (document.getElementById("letter-value")).value;
  try {
    const reply = await getJson("v1/dead-letters/replay", { method: "POST", body: { name: editing.name, value } });
    const refused = reply.refused?.[0];
    outcome = refused ? `Not sent: ${refused.reason}` : `${editing.source} was sent again.`;
    if (!refused) editing = null;
  } catch (error) {
    outcome = error instanceof Error ? error.message : String(error);
  }
  refresh("letters");
}
