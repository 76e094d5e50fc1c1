/** Sends requests to the service; every error becomes a `Failure` with a message for the reader. */

const KEY = "vlm2rec.key";
let storedKey = null;
try {
  storedKey = sessionStorage.getItem(KEY);
} catch {
  // Storage is switched off: the page asks for the key again after each load.
}

/** The API key of this tab, or null. */
export const apiKey = () => storedKey;

/** Use a key from now on; an empty one removes it. */
export function useKey(value) {
  storedKey = value || null;
  try {
    if (storedKey === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, storedKey);
  } catch {
    // Storage is switched off.
  }
}

/** What went wrong: `kind` is key, outdated, busy, unready, refused, failed or unreachable. */
export class Failure extends Error {
  constructor(kind, title, detail, retryAfterS = null) {
    super(title);
    Object.assign(this, { kind, title, detail, retryAfterS });
  }
}

/** Address of a path of the service, wherever it is mounted. */
export const address = (path) => new URL(path, document.baseURI).href;

/** Address of the picture of an item. */
export const pictureAddress = (itemId) => address(`items/${encodeURIComponent(itemId)}/image`);

/**
 * Ask the service.
 * @param {string} path relative, with its query
 * @param {{body?: string, signal?: AbortSignal}} [options] `body`: JSON to be posted
 * @returns {Promise<{data: any, timing: string}>} `timing`: the Server-Timing header
 * @throws {Failure} or an AbortError
 */
export async function ask(path, { body, signal } = {}) {
  const response = await send(path, body, signal);
  const text = await response.text().catch((error) => {
    throw unreachable(error);
  });
  let data = null;
  try {
    data = JSON.parse(text);
  } catch {
    if (response.ok) throw new Failure("failed", "The answer cannot be read", "It is not JSON; a proxy may have changed it.");
  }
  if (!response.ok) throw failure(response, data);
  return { data, timing: response.headers.get("Server-Timing") ?? "" };
}

/** The picture of an item as a local address; for services with keys, which `<img>` cannot send. */
export async function fetchPicture(itemId) {
  const response = await send(`items/${encodeURIComponent(itemId)}/image`);
  if (!response.ok) throw failure(response, null);
  return URL.createObjectURL(await response.blob());
}

/** Milliseconds by stage of a Server-Timing header. */
export function stages(timing) {
  const found = [...timing.matchAll(/([\w-]+);dur=([\d.]+)/g)];
  return Object.fromEntries(found.map(([, stage, milliseconds]) => [stage, Number(milliseconds)]));
}

async function send(path, body, signal) {
  const headers = {};
  if (storedKey !== null) headers["X-API-Key"] = storedKey;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  try {
    return await fetch(address(path), { method, headers, body, signal, credentials: "omit" });
  } catch (error) {
    throw unreachable(error);
  }
}

function unreachable(error) {
  if (error.name === "AbortError") return error;
  return new Failure("unreachable", "The service cannot be reached", "It may be starting again. Nothing is lost here.");
}

function failure(response, problem) {
  const { status } = response;
  const detail = typeof problem?.detail === "string" ? problem.detail : `Status ${status}`;
  const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  const retryAfterS = Number.isFinite(wait) ? wait : null;
  if (status === 401 || status === 403) return new Failure("key", "This service needs an API key", detail);
  if (status === 410) return new Failure("outdated", "The catalogue changed", detail);
  if (status === 429) return new Failure("busy", "Too many requests at once", detail, retryAfterS);
  if (status === 503) return new Failure("unready", "The service is not ready", detail, retryAfterS);
  if (status < 500) return new Failure("refused", "The service refused this request", detail);
  return new Failure("failed", "The service failed", detail);
}
