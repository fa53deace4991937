/** Requests to the HTTP interface, and what is kept of their answers. */

import { parseExact, writeExact } from "./exact.js";
import * as session from "./session.js";

/** A problem document (RFC 9457), or a failure to reach the router (status 0). */
export class Problem extends Error {
  /** @param {number} status @param {string} type @param {string} detail @param {number} retryS */
  constructor(status, type, detail, retryS = 0) {
    super(detail);
    this.status = status;
    this.type = type;
    this.retryS = retryS;
  }
}

/**
 * @typedef {Record<string, string | number | boolean | string[] | undefined | null>} Query
 */

/** The address of a path with its parameters; empty ones are left out. @param {string} path @param {Query} query */
export function address(path, query = {}) {
  const url = new URL(path, document.baseURI.split("#")[0]);
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== null && one !== "") url.searchParams.append(name, String(one));
    }
  }
  return url;
}

/**
 * A response that is not a problem. Throws Problem.
 * @param {string} path @param {{query?: Query, method?: string, body?: any, signal?: AbortSignal, accept?: string, headers?: Record<string, string>}} [options]
 */
export async function request(path, { query, method = "GET", body, signal, accept = "application/json", headers = {} } = {}) {
  /** @type {Response} */
  let response;
  try {
    response = await fetch(address(path, query), {
      method,
      signal,
      headers: {
        Accept: accept,
        Authorization: `Bearer ${session.key()}`,
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...headers,
      },
      body: body === undefined ? undefined : writeExact(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, "unreachable", "The router cannot be reached.");
  }
  if (response.ok) return response;
  throw await problemOf(response);
}

/** What a response that is not one of success says is wrong. @param {Response} response */
export async function problemOf(response) {
  const text = await response.text();
  let problem;
  try {
    problem = JSON.parse(text);
  } catch {
    problem = {};
  }
  const retryS = Number(response.headers.get("Retry-After")) || 0;
  return new Problem(response.status, String(problem.type ?? ""), String(problem.detail ?? problem.title ?? `HTTP ${response.status}`), retryS);
}

/** The JSON document of an answer, with exact integers. Throws Problem. @param {string} path @param {Parameters<typeof request>[1]} [options] */
export async function getJson(path, options) {
  return parseExact(await (await request(path, options)).text());
}

/** Save an answer as a file. @param {string} path @param {Query} query @param {string} name */
export async function download(path, query, name) {
  const response = await request(path, { query, accept: "*/*" });
  saveAs(await response.blob(), name);
}

/** @param {Blob} blob @param {string} name */
export function saveAs(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
