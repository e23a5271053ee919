// Requests to the server: the models, one streamed answer, and errors that say how to fix them.

import { sentence } from "./dom.js";
import { readEvents } from "./sse.js";
import { recall, remember } from "./tab.js";

const KEY = "lorica.key";
const url = (path) => new URL(path, document.baseURI);

/** An answer of the server that is an error, or the lack of one. retryAfter: in seconds. */
export class ServerError extends Error {
  constructor(message, { fix = "", status = 0, retryAfter = null } = {}) {
    super(sentence(message));
    Object.assign(this, { fix, status, retryAfter });
  }
}

export const apiKey = () => recall(KEY);

/** Keep the key until the tab is closed; "" forgets it. */
export const setApiKey = (key) => remember(KEY, key);

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  let response;
  try {
    response = await fetch(url(path), { ...options, headers, credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer.", { fix: "check that lorica serve is running, and try again" });
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // Not JSON: the status has to do.
  }
  return fromEnvelope(body?.error, {
    status: response.status,
    retryAfter: secondsUntil(response.headers.get("Retry-After")),
    fallback: `The server answered ${response.status} ${response.statusText}`.trim() + ".",
  });
}

/** From OpenAI's envelope. Lorica's messages end with "Fix: ...". */
function fromEnvelope(error, { status = 0, retryAfter = null, fallback = "The server reports an error." } = {}) {
  const raw = (typeof error?.message === "string" && error.message.trim()) || fallback;
  const [, message, fix] = raw.match(/^(.*?)\s+Fix: (.*?)\.?$/s) ?? [null, raw, ""];
  return new ServerError(message, { fix, status, retryAfter });
}

/** Seconds of a Retry-After header: a number or a date. Null if there is none. */
function secondsUntil(value) {
  if (!value) return null;
  const seconds = /^\d+(\.\d+)?$/.test(value.trim()) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
}

/** The cards of /v1/models, in the server's order. */
export async function listModels() {
  const response = await request("v1/models", { cache: "no-store" });
  let body = null;
  try {
    body = await response.json();
  } catch {
    // Answered below.
  }
  if (!Array.isArray(body?.data)) {
    throw new ServerError("GET /v1/models did not answer with a list of models.", {
      fix: "check that this page comes from lorica serve",
    });
  }
  return body.data.filter((card) => typeof card?.id === "string");
}

/**
 * Ask for one answer. Yields {text}, {finish}, {usage} and {served: {digest, generation}} as they
 * arrive. Throws: ServerError; AbortError when `signal` stops it.
 */
export async function* ask(body, signal) {
  const response = await request(body.messages ? "v1/chat/completions" : "v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
    throw new ServerError("The server did not answer with a stream.", { fix: "check what lies between this page and the server" });
  }
  yield* readAnswer(response.body);
}

async function* readAnswer(body) {
  let finished = false;
  try {
    for await (const data of readEvents(body)) {
      if (data === "[DONE]") return;
      const chunk = parse(data);
      if (chunk.error) throw fromEnvelope(chunk.error);
      if (chunk.lorica) yield { served: servedBy(chunk.lorica) };
      for (const choice of chunk.choices ?? []) {
        const text = choice.delta?.content ?? choice.text;
        if (text) yield { text: String(text) };
        if (choice.finish_reason) {
          finished = true;
          yield { finish: String(choice.finish_reason) };
        }
      }
      if (chunk.usage) yield { usage: chunk.usage };
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ServerError) throw error;
    throw new ServerError("The connection broke before the answer was complete.", { fix: "try again" });
  }
  if (!finished) throw new ServerError("The stream ended before the answer was complete.", { fix: "try again" });
}

/** Which adapter answers, as the response says: not as the list of models said earlier. */
const servedBy = ({ digest, generation }) => ({
  digest: typeof digest === "string" ? digest : null,
  generation: Number.isInteger(generation) ? generation : null,
});

function parse(data) {
  try {
    return JSON.parse(data) ?? {};
  } catch {
    throw new ServerError("The server sent an event that is not JSON.", { fix: "check what lies between this page and the server" });
  }
}
