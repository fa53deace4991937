/** What a panel shows while it has no answer, or an answer that is not whole. */

import { html, nothing } from "./vendor/lit-html.js";
import { refresh } from "./store.js";

const ADVICE = /** @type {Record<number, string>} */ ({
  0: "Check that the router runs; the page goes on trying.",
  401: "The key or token is not valid any more. Sign in with another one.",
  403: "This key may not see that. Ask for a key that may, or choose another advertiser.",
  422: "Choose a coarser granularity or a later start.",
  429: "Too many requests for this key; the page slows down.",
  503: "A store is away; the page goes on trying.",
});

/** @param {import("./api.js").Problem} problem */
export function problemText(problem) {
  return html`<div class="problem" role="alert"><p><b>${problem.message}</b></p>
    <p>${ADVICE[problem.status] ?? "Reload the page, or try again later."}</p>
    <button type="button" @click=${() => refresh()}>Try again</button></div>`;
}

/**
 * A panel: its content once there is an answer; before that, and beside it, what is wrong.
 * @param {import("./store.js").Entry} entry @param {(value: any) => unknown} content
 */
export function panelBody(entry, content) {
  if (entry.value === null) {
    return entry.error ? problemText(entry.error) : html`<p class="loading" role="status">Loading…</p>`;
  }
  return html`${entry.error ? html`<p class="stale" role="status">Shown as of ${new Date(entry.valueAt).toLocaleTimeString()}: ${entry.error.message}</p>` : nothing}
    <div class=${entry.former ? "former" : ""} aria-busy=${entry.former ? "true" : "false"}>${content(entry.value)}</div>`;
}

/** The warnings of an answer, in its own words. @param {string[] | undefined} warnings */
export function warnings(warnings) {
  if (!warnings?.length) return nothing;
  return html`<ul class="warnings" aria-label="Warnings">${warnings.map((w) => html`<li>${w.charAt(0).toUpperCase()}${w.slice(1)}</li>`)}</ul>`;
}
