// The history's dialog: open, delete with a way back, export.

import { byId, counted, element, notify, visible } from "./dom.js";
import * as history from "./history.js";

const dialog = byId("history");
let open = () => {};

export function startHistory(openEntry) {
  open = openEntry;
  byId("open-history").addEventListener("click", show);
  byId("export-history").addEventListener("click", download);
  byId("delete-history").addEventListener("click", () => {
    const removed = history.remove(new Set(history.entries().map((entry) => entry.id)));
    if (removed.length) offerUndo(removed, `The history is deleted: ${counted(removed.length, "entry", "entries")}.`);
    render();
    dialog.querySelector("[data-close]").focus();
  });
  byId("entries").addEventListener("keydown", onKey);
  history.watch(() => dialog.open && render());
}

function show() {
  render();
  dialog.showModal();
  (byId("entries").querySelector("button") ?? dialog.querySelector("[data-close]")).focus();
}

function render() {
  const list = history.entries();
  byId("history-count").textContent = list.length || "";
  byId("entries").replaceChildren(...list.map(row));
  if (list.length === 0) byId("entries").append(element("li", { className: "quiet nothing", text: "Nothing yet." }));
  byId("export-history").disabled = byId("delete-history").disabled = list.length === 0;
}

const time = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function row(entry) {
  const models = [...new Set(entry.turns.flatMap((turn) => turn.answers.map((answer) => answer.model)))];
  const prompt = entry.turns[0].prompt;
  const details = [
    time.format(entry.when),
    entry.turns.length > 1 ? counted(entry.turns.length, "turn") : null,
    models.map(visible).join(", ").slice(0, 200),
  ];
  const button = element(
    "button",
    { type: "button", className: "entry", "data-id": entry.id, on: { click: () => choose(entry.id) } },
    element("span", { className: "entry-prompt", dir: "auto", text: prompt.slice(0, 300) }),
    element("span", { className: "quiet entry-details", text: details.filter(Boolean).join(" · ") }),
  );
  const erase = element("button", {
    type: "button",
    className: "plain",
    "aria-label": `Delete: ${prompt.slice(0, 80)}`,
    text: "Delete",
    on: { click: () => deleteEntry(entry.id) },
  });
  return element("li", {}, button, erase);
}

function choose(id) {
  const entry = history.entries().find((candidate) => candidate.id === id);
  dialog.close();
  if (entry) open(entry);
}

function deleteEntry(id) {
  const buttons = [...byId("entries").querySelectorAll(".entry")];
  const index = buttons.findIndex((button) => button.dataset.id === id);
  offerUndo(history.remove(new Set([id])), "The entry is deleted.");
  render();
  const left = [...byId("entries").querySelectorAll(".entry")];
  (left[Math.min(index, left.length - 1)] ?? dialog.querySelector("[data-close]")).focus();
}

function offerUndo(removed, text) {
  notify(text, {
    label: "Undo",
    run: () => {
      history.restore(removed);
      render();
    },
  });
}

function onKey(event) {
  const buttons = [...byId("entries").querySelectorAll(".entry")];
  const index = buttons.indexOf(event.target);
  const moves = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: buttons.length - 1 };
  if (event.key in moves) {
    event.preventDefault();
    buttons[Math.max(0, Math.min(buttons.length - 1, moves[event.key]))]?.focus();
  } else if (event.key === "Delete" && index >= 0) {
    event.preventDefault();
    deleteEntry(event.target.dataset.id);
  }
}

function download() {
  const address = URL.createObjectURL(new Blob([history.exported()], { type: "application/json" }));
  const day = new Date().toISOString().slice(0, 10);
  element("a", { href: address, download: `lorica-history-${day}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
