/** Keys: who may see what, how much each is used; create, rotate and revoke. A new key is shown once. */

import { html, nothing } from "../vendor/lit-html.js";
import { getJson, request } from "../api.js";
import * as format from "../format.js";
import { panelBody } from "../states.js";
import { ask, changed, refresh } from "../store.js";
import { table } from "../table.js";

let shownKey = "";
let outcome = "";
const GRACE_S = 3600;

/** @param {import("../main.js").Context} context */
export function keys(context) {
  const entry = ask("keys", "v1/keys", {}, 10_000);
  return html`<h1>Keys</h1>
    ${context.access.token ? html`<p>A token changes no keys; sign in with an admin key to change them.</p>` : newKey()}
    <section class="panel" aria-labelledby="keys-title"><h2 id="keys-title">Keys</h2>
      ${panelBody(entry, (answer) => keyTable(answer.data, !context.access.token))}</section>`;
}

function newKey() {
  return html`<section class="panel" aria-labelledby="new-title"><h2 id="new-title">New key</h2>
      <form class="row" @submit=${create}>
        <label>Name <input id="key-name" required maxlength="100"></label>
        <label>Advertisers <input id="key-advertisers" placeholder="3, 7; empty: all" pattern="[0-9]+([, ]+[0-9]+)*"></label>
        <label>Days until it expires <input id="key-days" type="number" min="1" max="3650" placeholder="never"></label>
        <label class="check"><input id="key-admin" type="checkbox"> Admin</label>
        <button type="submit">Create</button>
      </form>
      <p role="status">${outcome}</p>
      ${shownKey ? html`<p class="secret">Copy it now, it cannot be shown again: <code>${shownKey}</code> <button type="button" @click=${() => navigator.clipboard?.writeText(shownKey)}>Copy</button> <button type="button" @click=${() => { shownKey = ""; changed(); }}>Done</button></p>` : nothing}
    </section>`;
}

/** @param {string} noun @param {any[]} many */
function plural(noun, many) {
  return many.length === 1 ? noun : `${noun}s`;
}

/** @param {any[]} rows @param {boolean} editable */
function keyTable(rows, editable) {
  const date = (/** @type {any} */ text) => (text ? format.time(Date.parse(text), "UTC") : "never");
  return table({
    caption: "Keys, newest first",
    rows,
    empty: "No keys but the installation's own.",
    columns: [
      { id: "n", title: "Name", cell: (r) => html`<span class="name" dir="auto">${r.name}</span> <span class="note">${r.id}</span>` },
      { id: "a", title: "May see", cell: (r) => (r.advertisers ? `${plural("advertiser", r.advertisers)} ${r.advertisers.join(", ")}` : "all advertisers") + (r.campaigns ? `, ${plural("campaign", r.campaigns)} ${r.campaigns.join(", ")}` : "") + (r.admin ? ", admin" : "") + (r.share ? ", shared link" : "") },
      { id: "s", title: "State", cell: (r) => r.state },
      { id: "e", title: "Expires", cell: (r) => date(r.expires_at) },
      { id: "l", title: "Last used", cell: (r) => date(r.last_used_at) },
      { id: "u", title: "Requests", number: true, cell: (r) => format.integer(r.requests) },
      { id: "x", title: "Actions", cell: (r) => (editable && r.state === "active" ? html`<button type="button" @click=${() => rotate(r)}>Rotate<span class="visually-hidden"> ${r.name}</span></button> <button type="button" @click=${() => revoke(r)}>Revoke<span class="visually-hidden"> ${r.name}</span></button>` : nothing) },
    ],
  });
}

/** @param {Event} event */
async function create(event) {
  event.preventDefault();
  const value = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ (document.getElementById(id)).value.trim();
  const advertisers = value("key-advertisers").split(/[, ]+/).filter(Boolean).map(BigInt);
  const days = Number(value("key-days"));
  const admin = /** @type {HTMLInputElement} */ (document.getElementById("key-admin")).checked;
  const form = /** @type {HTMLFormElement} */ (event.target);
  const created = await change(`${value("key-name")} was created.`, () => getJson("v1/keys", {
    method: "POST", body: { name: value("key-name"), advertisers: advertisers.length ? advertisers : null, admin, ...(days ? { expires_in: days * 86_400 } : {}) },
  }));
  if (created) form.reset();
}

/** @param {any} key */
function rotate(key) {
  return change(`${key.name} was rotated; the former key works for an hour more.`, () => getJson(`v1/keys/${key.id}/rotate`, { method: "POST", body: { grace_s: GRACE_S } }));
}

/** @param {any} key */
function revoke(key) {
  if (!confirm(`Revoke ${key.name}? Its users are refused from now on.`)) return undefined;
  return change(`${key.name} was revoked.`, async () => {
    await request(`v1/keys/${key.id}`, { method: "DELETE" });
    return {};
  });
}

/** Show no key any more, as when its user signs out. */
export function forgetKey() {
  shownKey = outcome = "";
}

/** Whether an action has succeeded. @param {string} done @param {() => Promise<any>} action */
async function change(done, action) {
  let succeeded = true;
  try {
    const reply = await action();
    shownKey = reply.key ?? "";
    outcome = done;
  } catch (error) {
    outcome = error instanceof Error ? error.message : String(error);
    succeeded = false;
  }
  refresh("keys");
  return succeeded;
}
