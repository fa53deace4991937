/** What the overview is about: advertiser, range, granularity, time zone and filters. */

import { html, nothing } from "../vendor/lit-html.js";
import { availableGrains, isoDate, isZone, PRESETS } from "../ranges.js";
import { choose, filter, params } from "../store.js";
import { DIMENSIONS } from "./breakdown.js";

/** The parameters that say whose numbers are asked for. @param {import("../store.js").Params} params @returns {Record<string, string>} */
export function subjectOf(params) {
  return params.advertiser ? { advertiser_id: params.advertiser } : {};
}

/** The time zone that days are of. @param {import("../main.js").Context} context */
export function zoneOf(context) {
  if (params.zone === "browser") return Intl.DateTimeFormat().resolvedOptions().timeZone;
  if (params.zone && isZone(params.zone)) return params.zone;
  const own = context.advertiser?.timezone;
  return own && isZone(own) ? own : "UTC";
}

/** @param {import("../main.js").Context} context @param {import("../ranges.js").Range} range @param {string} zone */
export function controls(context, range, zone) {
  return html`<form class="controls" aria-label="What is shown" @submit=${(/** @type {Event} */ e) => e.preventDefault()}>
    ${advertiserPicker(context)}
    <label>Range <select @change=${(/** @type {any} */ e) => choose({ range: e.target.value, ...(e.target.value === "custom" ? { from: isoDate(range.start, zone), to: isoDate(context.now, zone) } : {}) })}>
      ${PRESETS.map((p) => html`<option value=${p.id} ?selected=${p.id === params.range}>${p.label}</option>`)}
    </select></label>
    ${params.range === "custom"
      ? html`<label>From <input type="date" .value=${params.from} @change=${(/** @type {any} */ e) => choose({ from: e.target.value })}></label>
          <label>To <input type="date" .value=${params.to} @change=${(/** @type {any} */ e) => choose({ to: e.target.value })}></label>`
      : nothing}
    <label>By <select @change=${(/** @type {any} */ e) => choose({ grain: e.target.value })}>
      ${availableGrains(range.start, context.now, zone).map((g) => html`<option value=${g} ?selected=${g === params.grain}>${g === "auto" ? `auto (${range.grain})` : g}</option>`)}
    </select></label>
    <label>Time zone <select @change=${(/** @type {any} */ e) => choose({ zone: e.target.value })}>
      ${context.advertiser?.timezone ? html`<option value="" ?selected=${params.zone === ""}>${context.advertiser.timezone} (advertiser)</option>` : nothing}
      <option value="browser" ?selected=${params.zone === "browser"}>${Intl.DateTimeFormat().resolvedOptions().timeZone} (this browser)</option>
      <option value="UTC" ?selected=${params.zone === "UTC" || (params.zone === "" && !context.advertiser?.timezone)}>UTC</option>
      ${params.zone && !["browser", "UTC"].includes(params.zone) ? html`<option value=${params.zone} selected>${params.zone}</option>` : nothing}
    </select></label>
    <button type="button" @click=${share}>Copy link</button>
    <span class="note" id="copied" role="status"></span>
  </form>
  ${chips(context)}`;
}

/** @param {import("../main.js").Context} context */
function advertiserPicker(context) {
  const known = context.advertisers.some((a) => String(a.id) === params.advertiser) || params.advertiser === "*" || params.advertiser === "";
  return html`<label>Advertiser <select @change=${(/** @type {any} */ e) => choose({ advertiser: e.target.value, filters: {} })}>
    ${params.advertiser === "" ? html`<option value="" selected>choose…</option>` : nothing}
    ${context.access?.admin ? html`<option value="*" ?selected=${params.advertiser === "*"}>All advertisers</option>` : nothing}
    ${context.advertisers.map((a) => html`<option value=${String(a.id)} ?selected=${String(a.id) === params.advertiser}>${a.name === String(a.id) ? `Advertiser ${a.id}` : `${a.name} (${a.id})`}</option>`)}
    ${known ? nothing : html`<option value=${params.advertiser} selected>Advertiser ${params.advertiser}</option>`}
  </select></label>`;
}

/** @param {import("../main.js").Context} context */
function chips(context) {
  const all = Object.entries(params.filters).flatMap(([dimension, values]) => values.map((value) => ({ dimension, value })));
  if (!all.length) return nothing;
  return html`<ul class="chips" aria-label="Filters">${all.map(({ dimension, value }) => html`<li>
    <button type="button" @click=${() => filter(dimension, value, false)}>${DIMENSIONS.find((d) => d.id === dimension)?.one ?? dimension}: <span dir="auto">${(dimension === "campaign_id" && context.campaigns.get(value)?.name) || value}</span><span aria-hidden="true"> ×</span><span class="visually-hidden">: remove this filter</span></button></li>`)}
    <li><button type="button" @click=${() => choose({ filters: {} })}>Clear all</button></li></ul>`;
}

async function share() {
  const note = document.getElementById("copied");
  try {
    await navigator.clipboard.writeText(location.href);
    if (note) note.textContent = "Copied. The link holds the view, and no key.";
  } catch {
    if (note) note.textContent = "Copy the address of this page: it holds the view, and no key.";
  }
  setTimeout(() => note && (note.textContent = ""), 4000);
}
