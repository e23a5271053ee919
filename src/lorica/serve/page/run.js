// Asking: one request for each answer of a turn, all at once, and what arrives written down.

import { ask } from "./api.js";

/** An answer before its request. */
export const newAnswer = (model) => ({ model, text: "", state: "waiting", finish: null, usage: null, firstToken: null, seconds: null, digest: null, generation: null, error: null });

/** The request body for an answer: its model's own conversation so far, or the plain prompt. */
function bodyOf({ model, maxTokens }, entry, turn) {
  const values = maxTokens ? { ...entry.values, max_tokens: maxTokens } : entry.values;
  if (entry.mode !== "chat") return { model, prompt: turn.prompt, ...values };
  const messages = entry.system ? [{ role: "system", content: entry.system }] : [];
  for (const earlier of entry.turns.slice(0, entry.turns.indexOf(turn))) {
    const answer = earlier.answers.find((candidate) => candidate.model === model);
    if (answer?.state !== "done") continue;
    messages.push({ role: "user", content: earlier.prompt }, { role: "assistant", content: answer.text });
  }
  return { model, messages: [...messages, { role: "user", content: turn.prompt }], ...values };
}

/** Fill `view.answer` from the server, and show it as it grows. Never throws. */
export async function fill(view, entry, turn, signal) {
  const { answer } = view;
  const started = performance.now();
  let firstText = null;
  try {
    for await (const event of ask(bodyOf(answer, entry, turn), signal)) {
      if (event.text) {
        const now = performance.now();
        firstText ??= now;
        answer.firstToken ??= now - started;
        answer.seconds = (now - firstText) / 1000;
        answer.pieces = (answer.pieces ?? 0) + 1;
        answer.state = "writing";
        view.append(event.text);
      }
      if (event.finish) {
        answer.finish = event.finish;
        if (firstText !== null) answer.seconds = (performance.now() - firstText) / 1000;
      }
      if (event.usage) answer.usage = { prompt_tokens: event.usage.prompt_tokens, completion_tokens: event.usage.completion_tokens };
      if (event.served) Object.assign(answer, event.served);
    }
    answer.state = "done";
  } catch (error) {
    fail(answer, error, signal);
  }
  view.refresh();
}

function fail(answer, error, signal) {
  if (answer.state === "interrupted") return; // the page is being left
  if (signal.aborted || error.name === "AbortError") {
    answer.state = "stopped";
    return;
  }
  answer.state = "failed";
  answer.error = { message: error.message, fix: error.fix ?? "", status: error.status ?? 0 };
  const [, most] = answer.error.fix.match(/^set max_tokens to ([\d,]+) or less$/) ?? [];
  if (most) answer.error.maxTokens = Number(most.replaceAll(",", ""));
  if (error.retryAfter != null) answer.error.retryAt = Date.now() + error.retryAfter * 1000;
}
