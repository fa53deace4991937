/** The finality of a number: its words, and how it is drawn. */

import { html } from "./vendor/lit-html.js";

/** From the weakest to the strongest. */
export const FINALITIES = [
  { id: "provisional", word: "open", text: "still being counted; in exports: provisional" },
  { id: "closed", word: "closed", text: "all events on time are counted" },
  { id: "corrected", word: "corrected", text: "closed, then changed by late events" },
  { id: "reconciled", word: "reconciled", text: "recomputed from the archive by the nightly run: what is billed" },
];

/** @param {string} id */
export function finalityOf(id) {
  return FINALITIES.find((f) => f.id === id) ?? FINALITIES[0];
}

/** A mark with its word. @param {string} id */
export function badge(id) {
  const finality = finalityOf(id);
  return html`<span class="badge ${finality.id}" title=${finality.text}>${finality.word}</span>`;
}

/** What the marks mean. */
export function legend() {
  return html`<ul class="legend" aria-label="Finality">
    ${FINALITIES.map((f) => html`<li><span class="swatch ${f.id}" aria-hidden="true"></span><b>${f.word}</b> ${f.text}</li>`)}
    <li><span class="swatch watermark" aria-hidden="true"></span><b>watermark</b> events are counted up to here</li>
  </ul>`;
}
