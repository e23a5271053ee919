// The prompt: earlier ones with the arrow keys, and a draft that survives a reload.

import { byId } from "./dom.js";
import { entries } from "./history.js";
import { recall, remember } from "./tab.js";

const DRAFT = "lorica.draft";
const field = byId("prompt");
let position = -1; // among earlier prompts, newest first; -1: what is typed now
let draft = "";

export function startPrompt(onInput) {
  field.value = recall(DRAFT);
  field.addEventListener("keydown", onKey);
  field.addEventListener("input", () => {
    position = -1;
    remember(DRAFT, field.value);
    onInput();
  });
}

/** After sending: a conversation goes on with an empty field; a plain prompt stays, to be varied. */
export function afterSending(isChat) {
  position = -1;
  if (isChat) field.value = "";
  remember(DRAFT, field.value);
}

/** Each prompt of the history once, newest first; without what the field holds already. */
function earlierPrompts() {
  const prompts = entries().flatMap((entry) => entry.turns.map((turn) => turn.prompt).reverse());
  return [...new Set(prompts)].filter((prompt) => prompt !== draft);
}

function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.isComposing) return;
  const { selectionStart: start, selectionEnd: end, value } = field;
  const isAtEdge = start === end && (start === 0 || start === value.length) && position >= 0;
  if (event.key === "ArrowUp" && (end === 0 || isAtEdge) && move(1)) event.preventDefault();
  if (event.key === "ArrowDown" && isAtEdge && move(-1)) event.preventDefault();
}

function move(step) {
  if (position === -1) draft = field.value;
  const prompts = earlierPrompts();
  const next = position + step;
  if (next < -1 || next >= prompts.length) return false;
  position = next;
  field.value = next === -1 ? draft : prompts[next];
  const caret = step > 0 ? 0 : field.value.length;
  field.setSelectionRange(caret, caret);
  return true;
}
