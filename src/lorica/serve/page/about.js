// What a served model is: its method, what it was trained on and how it scored, its identity.

import { element } from "./dom.js";

const UNITS = ["bytes", "KiB", "MiB", "GiB"];

function size(bytes) {
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log2(Math.max(bytes, 1)) / 10));
  return `${(bytes / 1024 ** power).toLocaleString("en", { maximumFractionDigits: power ? 1 : 0 })} ${UNITS[power]}`;
}

/** A definition list of one card of /v1/models; hasIdentity: with its generation and digest. */
export function describe(card, { hasIdentity = true } = {}) {
  const list = element("dl", { className: "about" });
  const add = (term, value, className = "") => {
    if (value == null || value === "") return;
    const definition = element("dd", { className }, element("bdi", { text: String(value) }));
    list.append(element("div", {}, element("dt", {}, element("bdi", { text: term })), definition));
  };
  add("Method", card.method ?? (card.parent ? "" : "none: the base itself"));
  const notes = card.notes && typeof card.notes === "object" ? Object.entries(card.notes) : [];
  for (const [term, value] of notes) {
    add(term.replaceAll("_", " "), typeof value === "object" ? JSON.stringify(value) : value);
  }
  if (card.parent && notes.length === 0) add("Training", "its folder holds no notes");
  add("Prompts", card.chat === false ? "plain prompts only" : "plain or conversation");
  add("Context", card.max_length ? `${card.max_length.toLocaleString("en")} tokens` : "");
  if (!card.parent) return list;
  add("State", [card.state, card.pinned ? "pinned" : ""].filter(Boolean).join(", "));
  add("In memory", card.resident_bytes ? size(card.resident_bytes) : "");
  if (hasIdentity) add("Generation", card.generation);
  if (hasIdentity) add("Digest", card.digest, "digest");
  return list;
}
