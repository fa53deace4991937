/** The page: who looks, which view is shown, and the frame around it. */

import { html, nothing, render } from "./vendor/lit-html.js";
import * as session from "./session.js";
import { ask, choose, forget, fragmentOf, notice, onChange, params, readAddress, refresh } from "./store.js";
import { problemText } from "./states.js";
import { bill } from "./views/bill.js";
import { deadLetters } from "./views/dead_letters.js";
import { forgetKey, keys } from "./views/keys.js";
import { leave, overview } from "./views/overview.js";
import { pipeline } from "./views/pipeline.js";
import { statement } from "./views/statement.js";

/**
 * What all views know.
 * @typedef {{now: number, currency: string, access: any, advertisers: any[], advertiser: any, campaigns: Map<string, any>}} Context
 */

const VIEWS = [
  { id: "overview", title: "Overview", view: overview },
  { id: "bill", title: "Bills", view: bill },
  { id: "statement", title: "Statements", view: statement },
  { id: "pipeline", title: "Pipeline", view: pipeline, admin: true },
  { id: "dead-letters", title: "Dead letters", view: deadLetters, admin: true },
  { id: "keys", title: "Keys", view: keys, admin: true },
];
const TICK_MS = 1000;
const THEMES = ["auto", "light", "dark"];
const root = /** @type {HTMLElement} */ (document.getElementById("app"));
let remember = false;
let shown = "";
/** What has failed outside of any panel, such as an export. */
let failure = "";

/** @returns {Context | {problem: import("./api.js").Problem} | null} null while it is loaded */
function readContext() {
  const access = ask("access", "v1/access", {}, 60_000);
  if (!access.value) return access.error ? { problem: access.error } : null;
  const advertisers = ask("advertisers", "v1/advertisers", { limit: 500 }, 30_000);
  // The advertiser's time zone is part of every question.
  if (!advertisers.value && !advertisers.error) return null;
  const listed = advertisers.value?.data ?? [];
  const allowed = access.value.advertisers?.filter((/** @type {any} */ id) => !listed.some((/** @type {any} */ a) => String(a.id) === String(id))) ?? [];
  const all = [...listed, ...allowed.map((/** @type {any} */ id) => ({ id, name: String(id) }))];
  let advertiser = all.find((a) => String(a.id) === params.advertiser) ?? null;
  if (!advertiser && /^\d+$/.test(params.advertiser)) {
    // It may be beyond the first ones; an advertiser without an entry has no time zone.
    const entry = ask("advertiser", `v1/advertisers/${params.advertiser}`, {}, 30_000);
    if (entry.loading && (entry.former || !entry.value) && !entry.error) return null;
    advertiser = entry.former ? null : entry.value;
  }
  /** @type {Map<string, any>} */
  let campaigns = new Map();
  if (params.advertiser) {
    // Of all advertisers, the first ones: for names, owners and states beside the numbers.
    const advertiser_id = params.advertiser === "*" ? undefined : params.advertiser;
    const entry = ask("campaigns", "v1/campaigns", { advertiser_id, limit: 1000 }, 30_000);
    campaigns = new Map(((entry.former ? null : entry.value)?.data ?? []).map((/** @type {any} */ c) => [String(c.id), c]));
  }
  return { now: Date.now(), currency: access.value.currency, access: access.value, advertisers: all, advertiser, campaigns };
}

/** Choose the advertiser where there is no choice, or the whole installation for its operator. @param {Context} context */
function chooseFirst(context) {
  if (params.advertiser) return;
  const first = context.access.admin ? "*" : context.advertisers.length ? String(context.advertisers[0].id) : "";
  if (!first) return;
  params.advertiser = first;
  history.replaceState(null, "", location.pathname + location.search + fragmentOf(params));
}

function page() {
  if (!session.key()) return signInPage("");
  const context = readContext();
  if (context === null) return loadingPage();
  if ("problem" in context) {
    if (context.problem.status === 401) return signInPage(context.problem.message);
    return frame(null, problemText(context.problem));
  }
  chooseFirst(context);
  const view = VIEWS.find((v) => v.id === params.view && (!v.admin || context.access.admin)) ?? VIEWS[0];
  if (shown !== view.id) {
    if (shown === "overview") leave();
    shown = view.id;
    document.title = `${view.title} · adclick`;
  }
  return frame(context, view.view(context));
}

/** What stands until it is known who looks: nothing that would move once the views are there. */
function loadingPage() {
  return html`<header class="top"><span class="brand">adclick</span></header><main class="wait"><p class="loading" role="status">Loading…</p></main>`;
}

/** @param {Context | null} context @param {unknown} content */
function frame(context, content) {
  const views = context ? VIEWS.filter((v) => !v.admin || context.access.admin) : [];
  return html`
    <a class="skip" href="#main" @click=${skip}>Skip to the numbers</a>
    <header class="top">
      <span class="brand">adclick</span>
      <nav aria-label="Views">${views.map((v) => html`<a href=${fragmentOf({ ...params, view: v.id })} aria-current=${v.id === shown ? "page" : nothing}
          @click=${(/** @type {Event} */ e) => { e.preventDefault(); choose({ view: v.id }); }}>${v.title}</a>`)}</nav>
      <div class="who">
        ${context ? html`<span class="note" title="The key or token of this tab">${context.access.name || context.access.key}</span>` : nothing}
        <label class="theme">Theme <select @change=${(/** @type {any} */ e) => setTheme(e.target.value)}>${THEMES.map((t) => html`<option ?selected=${t === theme()}>${t}</option>`)}</select></label>
        ${session.key() ? html`<button type="button" @click=${signOut}>Sign out</button>` : nothing}
      </div>
    </header>
    ${failure ? html`<p class="problem" role="alert">${failure} <button type="button" @click=${() => { failure = ""; draw(); }}>Close</button></p>` : nothing}
    <p class="notice" role="status">${notice}</p>
    <main id="main" tabindex="-1">${content}</main>`;
}

/** @param {Event} event */
function skip(event) {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

/** @param {string} problem */
function signInPage(problem) {
  shown = "";
  leave();
  return frame(null, html`<form class="sign-in" @submit=${signIn}>
    <h1>adclick</h1>
    <p>Open the link that <code>adclick up</code>, <code>adclick demo</code> or <code>adclick share</code> prints, or enter a key.</p>
    ${problem ? html`<p class="problem" role="alert">${problem}</p>` : nothing}
    <label>Key or token <input id="key" type="password" autocomplete="off" required></label>
    <label class="check"><input type="checkbox" .checked=${remember} @change=${(/** @type {any} */ e) => (remember = e.target.checked)}> Keep it in this browser until I sign out</label>
    <button type="submit">Open the dashboard</button>
  </form>`);
}

/** @param {Event} event */
function signIn(event) {
  event.preventDefault();
  session.signIn(/** @type {HTMLInputElement} */ (document.getElementById("key")).value, remember);
  forget();
  draw();
}

function signOut() {
  session.signOut();
  forget();
  forgetKey();
  draw();
}

function theme() {
  return document.documentElement.dataset.theme ?? "auto";
}

/** @param {string} name */
function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  try {
    localStorage.setItem("adclick.theme", name);
  } catch {
    // it lasts until the page is left
  }
  for (const chart of document.querySelectorAll("ad-chart")) /** @type {any} */ (chart).onTheme();
}

function draw() {
  let content;
  try {
    content = page();
  } catch (error) {
    console.error(error);
    content = frame(null, html`<div class="problem" role="alert"><p><b>This view cannot be drawn: ${error instanceof Error ? error.message : String(error)}</b></p>
      <p><a href="#">Begin again</a> with the overview.</p></div>`);
  }
  render(content, root);
}

try {
  setTheme(localStorage.getItem("adclick.theme") ?? "auto");
} catch {
  // as above
}
session.begin();
onChange(draw);
root.replaceChildren();
readAddress();
addEventListener("popstate", readAddress);
addEventListener("hashchange", () => {
  const former = session.key();
  session.begin();
  if (session.key() !== former) {
    // Nothing of the former key's is shown for the new one.
    leave();
    forget();
    forgetKey();
  }
  readAddress();
});
// A hidden page is drawn once more, which ends its stream.
document.addEventListener("visibilitychange", () => (document.hidden ? draw() : refresh()));
addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name === "AbortError") return;
  event.preventDefault();
  failure = `That failed: ${event.reason instanceof Error ? event.reason.message : String(event.reason)}`;
  draw();
});
setInterval(() => !document.hidden && draw(), TICK_MS);
