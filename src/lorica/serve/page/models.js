// The list of served models: which of them are asked, a search, and what is known of each.

import { describe } from "./about.js";
import { byId, counted, element, named, notify, visible } from "./dom.js";
import { store, stored } from "./settings.js";

export const MAX_CHOSEN = 6;
/** Browsers open six connections to one server: a seventh answer would wait for another to end. */
const SEARCH_FROM = 9;
const PLAIN_ONLY = "plain prompts only";

/** By name of a model that can be asked: {id, alias, condition, card}. In the server's order. */
let choices = new Map();
const chosen = new Set(Array.isArray(stored.chosen) ? stored.chosen.filter((id) => typeof id === "string") : []);
let onChange = () => {};

export const choiceOf = (id) => choices.get(id);
export const chosenIds = () => [...choices.keys()].filter((id) => chosen.has(id));

/** Whether a model can be asked in a conversation: some adapters have a format for plain prompts only. */
export const canChat = (id) => choices.get(id)?.card.chat !== false;

export function startModels(listener) {
  onChange = listener;
  byId("search").addEventListener("input", filter);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") moveFocus(event, null, 1);
  });
  byId("choices").addEventListener("keydown", (event) => {
    if (event.target.type !== "checkbox") return;
    if (event.key === "ArrowDown") moveFocus(event, event.target, 1);
    if (event.key === "ArrowUp") moveFocus(event, event.target, -1);
  });
}

/** An entry for each model, and for a conditioned adapter one for each condition. */
function choicesOf(cards) {
  const list = new Map();
  for (const card of cards) {
    const conditions = Array.isArray(card.conditions) ? card.conditions.map(String) : [];
    for (const condition of conditions.length ? conditions : [null]) {
      const id = condition === null || card.id.endsWith(`:${condition}`) ? card.id : `${card.id}:${condition}`;
      if (!list.has(id)) list.set(id, { id, alias: card.id, condition, card });
    }
  }
  return list;
}

/** Show the cards of /v1/models, and keep what was chosen as far as it is still served. */
export function showModels(cards) {
  const isFirst = choices.size === 0;
  choices = choicesOf(cards);
  const gone = [...chosen].filter((id) => !choices.has(id));
  gone.forEach((id) => chosen.delete(id));
  if (gone.length && !isFirst) notify(`No longer served: ${gone.map(visible).join(", ").slice(0, 200)}.`);
  if (chosen.size === 0) {
    const usable = [...choices.values()].filter(({ card }) => card.state !== "failed");
    usable.slice(0, 2).forEach(({ id }) => chosen.add(id));
  }

  const open = new Set([...byId("choices").querySelectorAll("[aria-expanded=true]")].map((b) => b.dataset.id));
  const focused = document.activeElement?.dataset?.id;
  byId("choices").replaceChildren(...[...choices.values()].map((choice, index) => row(choice, index, open.has(choice.id))));
  if (focused) byId("choices").querySelector(`input[data-id="${CSS.escape(focused)}"]`)?.focus();
  byId("search-row").hidden = choices.size < SEARCH_FROM;
  if (byId("search-row").hidden) byId("search").value = "";
  const base = cards.find((card) => !card.parent);
  byId("base-name").replaceChildren(...(base ? [named(base.id)] : []));
  document.title = base ? `${visible(base.id)} · lorica` : "lorica";
  filter();
  changed();
}

function row({ id, condition, card }, index, isOpen) {
  const panel = element("div", { id: `about-${index}`, hidden: !isOpen });
  if (isOpen) panel.append(describe(card));
  const box = element("input", { type: "checkbox", id: `choice-${index}`, "data-id": id });
  box.checked = chosen.has(id);
  box.addEventListener("change", () => choose(box, id));
  const about = element("button", {
    type: "button",
    className: "plain about-button",
    "data-id": id,
    "aria-expanded": isOpen,
    "aria-controls": panel.id,
    "aria-label": `About ${id}`,
    text: "About",
  });
  about.addEventListener("click", () => {
    panel.hidden = !panel.hidden;
    about.setAttribute("aria-expanded", String(!panel.hidden));
    if (!panel.hidden) panel.replaceChildren(describe(card));
  });
  const isBusy = card.state && !["resident", "registered", "evicted"].includes(card.state);
  const kind = [card.parent ? card.method : "base", isBusy ? card.state : null, card.chat === false ? PLAIN_ONLY : null];
  const label = element("label", { for: box.id }, named(id), " ", element("span", { className: "quiet kind", text: kind.filter(Boolean).join(", ") }));
  const item = element("li", { className: condition === null ? "" : "conditioned" }, element("div", { className: "choice" }, box, label, about), panel);
  const notes = card.notes ? JSON.stringify(card.notes) : "";
  item.dataset.words = `${id} ${card.method ?? "base"} ${notes}`.toLowerCase();
  return item;
}

function choose(box, id) {
  if (box.checked) chosen.add(id);
  else chosen.delete(id);
  changed();
}

function changed() {
  const isFull = chosenIds().length >= MAX_CHOSEN;
  for (const box of byId("choices").querySelectorAll("input")) box.disabled = isFull && !box.checked;
  byId("models-limit").hidden = !isFull;
  byId("models-limit").textContent = isFull ? `${MAX_CHOSEN} models are chosen, the most at a time: a browser opens ${MAX_CHOSEN} connections to a server. Uncheck one to choose another.` : "";
  store({ chosen: [...chosen] });
  onChange();
}

function filter() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let visible = 0;
  for (const item of byId("choices").children) {
    item.hidden = !words.every((word) => item.dataset.words.includes(word));
    if (!item.hidden) visible += 1;
  }
  const all = choices.size;
  byId("models-count").textContent = words.length ? `${visible} of ${all}` : all || "";
  const empty = byId("models-empty");
  empty.hidden = visible > 0 || all === 0;
  empty.textContent = `None of ${counted(all, "model")} matches.`;
}

function moveFocus(event, from, step) {
  const boxes = [...byId("choices").querySelectorAll("li:not([hidden]) input:enabled")];
  const next = boxes[boxes.indexOf(from) + step];
  event.preventDefault();
  if (next) next.focus();
  else if (step < 0 && !byId("search-row").hidden) byId("search").focus();
}
