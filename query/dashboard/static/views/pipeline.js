/** The pipeline: what flows where and how fast, what waits, and which process does it. */

import { html, nothing, svg } from "../vendor/lit-html.js";
import { request } from "../api.js";
import * as format from "../format.js";
import { alertPanel, readAlerts } from "../panels/alerts.js";
import { isoDate } from "../ranges.js";
import { panelBody } from "../states.js";
import { ask, changed, refresh } from "../store.js";
import { table } from "../table.js";

/** So many seconds without a newer event are worth a word. */
const IDLE_S = 120;
let started = "";

/** @param {import("../main.js").Context} context */
export function pipeline(context) {
  const state = ask("pipeline", "v1/pipeline", {}, 2000);
  const runs = ask("runs", "v1/reconciliations", {}, 10_000);
  // The operator's alerts are for keys that see all advertisers.
  const all = context.access.advertisers === null && context.access.campaigns === null;
  return html`<h1>Pipeline</h1>
    ${all ? alertPanel(context, readAlerts("0"), "UTC", "Alerts") : nothing}
    ${panelBody(state, (answer) => html`${health(answer)} ${flow(answer)} ${lags(answer)} ${dedup(answer)} ${processes(answer)}`)}
    <section class="panel" aria-labelledby="runs-title">
      <div class="panel-head"><h2 id="runs-title">Nightly runs</h2>
        <form class="row" @submit=${start}><label>Day <input type="date" id="run-date" required max=${isoDate(context.now, "UTC")} .value=${isoDate(context.now - 86_400_000, "UTC")}></label><button type="submit">Reconcile</button></form></div>
      <p role="status">${started}</p>
      ${panelBody(runs, (answer) => runsTable(answer.data))}
    </section>`;
}

/** @param {Event} event */
async function start(event) {
  event.preventDefault();
  const date = /** @type {HTMLInputElement} */ (document.getElementById("run-date")).value;
  started = `Starting a run for ${date}…`;
  changed();
  try {
    await request("v1/reconciliations", { method: "POST", body: { date } });
    started = `A run for ${date} has been started; it is listed below once it is published.`;
  } catch (error) {
    started = error instanceof Error ? error.message : String(error);
  }
  refresh("runs");
}

/** @param {any} state */
function health(state) {
  const problems = Object.entries(state.problems ?? {});
  const lag = Object.values(state.topics ?? {}).reduce((/** @type {number} */ a, /** @type {any} */ b) => a + Number(b ?? 0), 0);
  const newest = Math.max(0, ...(state.lag?.ingest ?? []).map((/** @type {any} */ p) => Date.parse(p.watermark ?? "") || 0));
  const idleS = newest ? (Date.now() - newest) / 1000 : 0;
  const idle = !lag && idleS > IDLE_S;
  return html`<section class="health ${problems.length ? "bad" : "good"}" role="status">
    <p><b>${problems.length ? "Needs attention" : idle ? "Healthy, but idle" : "Healthy"}</b>
      · overload level ${state.level ?? "unknown"} · ${format.integer(lag)} messages waiting
      · watermark ${state.watermark ? format.time(Date.parse(state.watermark), "UTC", "second") : "none"} UTC
      ${state.stream_lag_s === null || state.stream_lag_s === undefined ? nothing : html`· stream ${format.ago(Number(state.stream_lag_s))} behind`}</p>
    ${idle ? html`<p>No new events: the newest is of ${format.time(newest, "UTC", "second")} UTC, ${format.ago(idleS)} ago. All that were sent are counted; do the producers still send?</p>` : nothing}
    ${problems.length ? html`<ul>${problems.map(([name, text]) => html`<li><b>${name}</b>: ${String(text)}</li>`)}</ul>` : nothing}
    ${state.warnings?.length ? html`<ul>${state.warnings.map((/** @type {string} */ w) => html`<li>${w}</li>`)}</ul>` : nothing}
  </section>`;
}

const STAGES = [
  { id: "kafka", title: "Kafka", note: "ad-events", rate: "events", x: 10, y: 70 },
  { id: "ingest", title: "ingest", note: "decode, dedup", rate: "ingest", x: 190, y: 70 },
  { id: "stream", title: "stream", note: "windows", rate: "stream", x: 370, y: 20 },
  { id: "archive", title: "archive", note: "Parquet", rate: "archive", x: 370, y: 120 },
  { id: "redis", title: "Redis", note: "minutes", x: 550, y: 0 },
  { id: "clickhouse", title: "ClickHouse", note: "hours, days", x: 550, y: 60 },
  { id: "nightly", title: "Spark", note: "nightly", x: 550, y: 120 },
  { id: "router", title: "router", note: "HTTP", x: 730, y: 60 },
];
const PIPES = [["kafka", "ingest"], ["ingest", "stream"], ["ingest", "archive"], ["stream", "redis"], ["stream", "clickhouse"], ["archive", "nightly"], ["nightly", "clickhouse"], ["redis", "router"], ["clickhouse", "router"]];
const BOX = { width: 120, height: 46 };

/** @param {any} state */
function flow(state) {
  const place = new Map(STAGES.map((s) => [s.id, s]));
  const rate = (/** @type {string | undefined} */ name) => {
    const value = name && state.rates?.[name];
    return value === undefined || value === null || value === "" ? "" : `${format.short(Number(value))}/s`;
  };
  return html`<section class="panel" aria-labelledby="flow-title"><h2 id="flow-title">Flow</h2>
    <div class="scroll" tabindex="0" role="region" aria-label="Flow of events"><svg class="flow" viewBox="0 -6 870 184" role="img" aria-label=${`Events flow from Kafka through ingest and stream to Redis and ClickHouse, and through the archive to the nightly run. ${STAGES.map((s) => (rate(s.rate) ? `${s.title} ${rate(s.rate)}.` : "")).join(" ")}`}>
      ${PIPES.map(([a, b]) => {
        const [from, to] = [place.get(a), place.get(b)];
        if (!from || !to) return nothing;
        const vertical = from.x === to.x;
        const [x1, y1] = vertical ? [from.x + BOX.width / 2, from.y] : [from.x + BOX.width, from.y + BOX.height / 2];
        const [x2, y2] = vertical ? [to.x + BOX.width / 2, to.y + BOX.height] : [to.x, to.y + BOX.height / 2];
        return svg`<path class="pipe" d=${`M${x1},${y1} C${(x1 + x2) / 2},${y1} ${(x1 + x2) / 2},${y2} ${x2},${y2}`} />`;
      })}
      ${STAGES.map((s) => svg`<g transform=${`translate(${s.x},${s.y})`}><rect class=${state.problems?.[s.id] ? "stage bad" : "stage"} width=${BOX.width} height=${BOX.height} rx="6" />
        <text class="stage-title" x="10" y="19">${s.title}</text><text class="stage-note" x="10" y="36">${s.note}</text><text class="stage-rate" x=${BOX.width - 8} y="19" text-anchor="end">${rate(s.rate)}</text></g>`)}
    </svg></div></section>`;
}

/** @param {any} state */
function lags(state) {
  /** @type {any[]} */
  const rows = Object.entries(state.lag ?? {}).flatMap(([stage, partitions]) => /** @type {any[]} */ (partitions).map((p) => ({ stage, ...p })));
  const stages = [...new Set(rows.map((r) => r.stage))].map((stage) => {
    const own = rows.filter((r) => r.stage === stage);
    const known = (/** @type {string} */ name) => own.map((r) => r[name]).filter((v) => v !== undefined && v !== null).map(Number);
    const watermarks = own.map((r) => r.watermark).filter(Boolean).sort();
    return { stage, messages: known("messages").length ? known("messages").reduce((a, b) => a + b, 0) : null, seconds: known("seconds").length ? Math.max(...known("seconds")) : null, watermark: watermarks[0] };
  });
  const columns = (/** @type {import("../table.js").Column[]} */ first) => [
    ...first,
    { id: "m", title: "Messages waiting", number: true, cell: (/** @type {any} */ r) => format.integer(r.messages) },
    { id: "s", title: "Behind", number: true, cell: (/** @type {any} */ r) => (r.seconds === null || r.seconds === undefined ? format.NONE : format.ago(r.seconds)) },
    { id: "w", title: "Watermark (UTC)", cell: (/** @type {any} */ r) => (r.watermark ? format.time(Date.parse(r.watermark), "UTC", "second") : format.NONE) },
  ];
  return html`<section class="panel" aria-labelledby="lags-title"><h2 id="lags-title">Lag</h2>
    ${table({ caption: "Lag by stage", rows: stages, columns: columns([{ id: "g", title: "Stage", cell: (r) => r.stage }]) })}
    <details><summary>By partition</summary>${table({ caption: "Lag by stage and partition", rows, columns: columns([{ id: "g", title: "Stage", cell: (r) => r.stage }, { id: "p", title: "Partition", number: true, cell: (r) => String(r.partition) }]) })}</details>
  </section>`;
}

/** @param {any} state */
function dedup(state) {
  if (!state.dedup) return nothing;
  const titles = /** @type {Record<string, string>} */ ({ first: "First copies", copies: "Copies dropped", bloom_positives: "Bloom positives", bloom_false: "of these false", doubt: "In doubt" });
  return html`<section class="panel" aria-labelledby="dedup-title"><h2 id="dedup-title">Dedup</h2>
    <dl class="facts">${Object.entries(state.dedup).map(([name, value]) => html`<div><dt>${titles[name] ?? name}</dt><dd>${typeof value === "number" || typeof value === "bigint" ? format.integer(value) : String(value)}</dd></div>`)}</dl></section>`;
}

/** @param {any} state */
function processes(state) {
  const rows = state.processes ?? state.ingest_workers ?? [];
  return html`<section class="panel" aria-labelledby="processes-title"><h2 id="processes-title">Processes</h2>
    ${table({
      caption: "Each process and its state",
      rows,
      columns: [
        { id: "w", title: "Process", cell: (r) => r.name ?? r.worker },
        { id: "k", title: "Kind", cell: (r) => r.kind ?? "" },
        { id: "l", title: "State", cell: (r) => (r.state ?? r.level ?? "") + (r.why ? `: ${r.why}` : "") },
        { id: "c", title: "CPU seconds", number: true, cell: (r) => (r.cpu_s === undefined || r.cpu_s === null ? format.NONE : format.integer(Math.round(r.cpu_s))) },
        { id: "m", title: "Memory, MB", number: true, cell: (r) => (r.rss_mb === undefined || r.rss_mb === null ? format.NONE : format.integer(Math.round(r.rss_mb))) },
      ],
    })}</section>`;
}

/** @param {any[]} runs */
function runsTable(runs) {
  return table({
    caption: "Nightly runs, newest first",
    rows: runs.slice(0, 31),
    empty: "No day has been reconciled yet.",
    columns: [
      { id: "d", title: "Day", cell: (r) => r.date },
      { id: "r", title: "Run", cell: (r) => html`<code>${r.run_id ?? ""}</code>` },
      { id: "p", title: "Published", cell: (r) => (r.published_at ? format.time(Date.parse(`${r.published_at}`.endsWith("Z") ? r.published_at : `${r.published_at}Z`), "UTC") : (r.state ?? "running")) },
      { id: "s", title: "Seconds", number: true, cell: (r) => (r.seconds === undefined ? format.NONE : format.integer(Math.round(Number(r.seconds)))) },
      { id: "n", title: "Rows", number: true, cell: (r) => format.integer(r.rows) },
      { id: "c", title: "Corrected cells", number: true, cell: (r) => format.integer(r.drifted) },
      { id: "a", title: "Alert", cell: (r) => (r.alert ? html`<span class="badge corrected">alert</span>` : "no") },
    ],
  });
}
