// The page of lorica serve: the same prompt to the base and its adapters, answers side by side.

import { listModels } from "./api.js";
import { announce, byId, counted, element, isTyping, notify, sentence, startDialogs, visible } from "./dom.js";
import * as history from "./history.js";
import { startHistory } from "./history_view.js";
import { askForKey, showKeyState, startKeyDialog } from "./key_dialog.js";
import { canChat, chosenIds, choiceOf, showModels, startModels } from "./models.js";
import { afterSending, startPrompt } from "./prompt.js";
import { fill, newAnswer } from "./run.js";
import { fitMaxTokens, readSettings, startSettings, store, stored } from "./settings.js";
import { recall, remember } from "./tab.js";
import { addTurn, TurnView } from "./turn.js";

const OPEN_ENTRY = "lorica.open";
const prompt = byId("prompt");
const modes = [...document.querySelectorAll("[name=mode]")];
let entry = null; // what is on the page
let running = null; // {controller, entry, turn} while answers are written

const isTouch = matchMedia("(pointer: coarse)");
const mode = () => modes.find((radio) => radio.checked).value;

// --- models and the key

/** Show the models that the server lists. Returns: whether it did. */
async function loadModels({ hasNewKey = false } = {}) {
  try {
    const cards = await listModels();
    showModels(cards);
    showKeyState();
    if (!entry && cards.length === 0) showStart("No model is served to you.", "Start the server with a base, or use a key that may ask more models.");
    else if (!entry) showStart();
    return true;
  } catch (error) {
    const isLocked = error.status === 401;
    if (!entry && isLocked) showStart("This server asks for an API key.", "Press Reload to enter it.");
    else if (!entry) showStart(error.message, error.fix ? sentence(`Fix: ${error.fix}`) : "");
    if (isLocked) askForKey(hasNewKey ? error.message : "");
    else if (entry || hasNewKey) notify(error.fix ? `${error.message} ${sentence(`Fix: ${error.fix}`)}` : error.message);
    return false;
  }
}

byId("reload-models").addEventListener("click", async () => {
  if (await loadModels()) announce("The models are reloaded.");
});

// --- what is on the page

/** How to begin; what holds for wide screens or keyboards only is shown on those only. */
const howTo = () => [
  "Choose models, write a prompt, and send it",
  element("span", { className: "only-keys", text: " with Ctrl + Enter" }),
  ". Their answers appear ",
  element("span", { className: "only-wide", text: "side by side" }),
  element("span", { className: "only-narrow", text: "one below the other" }),
  ".",
];

/** Without an entry: what the page is for, or why it cannot be used. */
function showStart(what = "Ask the base and its adapters the same question.", then = howTo()) {
  byId("turns").replaceChildren(element("div", { className: "start" }, element("h2", { text: what }), element("p", {}, ...[then].flat())));
}

function showEntry(next) {
  stop();
  entry = next;
  for (const turn of entry.turns) {
    for (const answer of turn.answers) if (answer.state === "waiting" || answer.state === "writing") answer.state = "interrupted";
  }
  byId("turns").replaceChildren();
  entry.turns.forEach((turn) => addTurn(new TurnView(turn, retry)));
  setMode(entry.mode);
  byId("system").value = entry.system ?? "";
  remember(OPEN_ENTRY, entry.id);
  showControls();
}

function clear() {
  stop();
  entry = null;
  remember(OPEN_ENTRY, "");
  showStart();
  showControls();
  prompt.focus();
}

function setMode(value) {
  for (const radio of modes) radio.checked = radio.value === (value === "chat" ? "chat" : "plain");
}

/** The chosen models that take prompts of the chosen kind, and those that do not. */
function targets() {
  const chosen = chosenIds();
  const models = mode() === "chat" ? chosen.filter(canChat) : chosen;
  return { models, leftOut: chosen.filter((id) => !models.includes(id)) };
}

function showControls() {
  const { models: names, leftOut } = targets();
  const isChat = mode() === "chat";
  fitMaxTokens(names.map((id) => choiceOf(id).card));
  byId("left-out").hidden = leftOut.length === 0;
  byId("left-out").textContent = leftOut.length ? `Left out of the conversation: ${leftOut.map(visible).join(", ")} (plain prompts only).` : "";
  byId("targets").textContent = names.length === 0 ? "" : `To ${names.slice(0, 2).map(visible).join(", ")}${names.length > 2 ? ` and ${names.length - 2} more` : ""}`;
  byId("open-rail").textContent = chosenIds().length ? `Models · ${chosenIds().length}` : "Models";
  byId("system-row").hidden = !isChat;
  byId("new-entry").hidden = !(isChat && entry);
  byId("send").disabled = running !== null;
  byId("stop-button").disabled = running === null;
  prompt.placeholder = isChat && entry?.mode === "chat" ? "Write the next message" : isChat ? "Write a message" : "Write a prompt";
}

function showProblem(text) {
  byId("composer-problem").textContent = text;
  byId("composer-problem").hidden = !text;
}

// --- sending and stopping

function send() {
  if (running) return;
  const { values, problem } = readSettings();
  const { models, leftOut } = targets();
  const noModel = leftOut.length ? "The chosen models take plain prompts only. Choose Plain, or another model." : "Choose a model first.";
  const wrong = prompt.value === "" ? "Write a prompt first." : models.length === 0 ? noModel : problem;
  showProblem(wrong ?? "");
  if (problem) byId("settings").open = true;
  if (wrong) return prompt.value === "" ? prompt.focus() : undefined;

  const turn = { prompt: prompt.value, answers: models.map(newAnswer) };
  const isNext = mode() === "chat" && entry?.mode === "chat";
  if (!isNext) {
    entry = { id: crypto.randomUUID?.() ?? String(Math.random()), when: 0, mode: mode(), system: "", turns: [] };
    byId("turns").replaceChildren();
  }
  Object.assign(entry, { when: Date.now(), values, system: mode() === "chat" ? byId("system").value : "" });
  entry.turns.push(turn);
  remember(OPEN_ENTRY, entry.id);
  afterSending(mode() === "chat");
  closeRail();
  setSmall(true);

  const view = new TurnView(turn, retry);
  addTurn(view);
  run(turn, view, view.answers);
}

async function run(turn, view, answers) {
  const mine = { controller: new AbortController(), entry, turn };
  running = mine;
  save(entry);
  const isOnSend = document.activeElement === byId("send");
  showControls();
  if (isOnSend) byId("stop-button").focus();
  announce(answers.length === 1 ? `${answers[0].answer.model} is answering.` : `${answers.length} models are answering.`);
  await Promise.all(
    answers.map(async (answer) => {
      await fill(answer, mine.entry, turn, mine.controller.signal);
      if (answer.answer.error?.status === 401) askForKey("");
      save(mine.entry);
      view.update();
      announce(`The answer of ${answer.answer.model} ${outcome(answer.answer)}`);
    }),
  );
  if (answers.some(({ answer }) => answer.error?.status === 404 || isReplaced(answer))) loadModels();
  if (running !== mine) return;
  running = null;
  const isOnStop = document.activeElement === byId("stop-button");
  showControls();
  if (isOnStop) byId("send").focus();
}

/** Whether another adapter answered than the list of models shows. */
function isReplaced(answer) {
  const card = choiceOf(answer.model)?.card;
  return Boolean(answer.digest && card?.digest && card.digest !== answer.digest);
}

function outcome({ state, error, usage }) {
  if (state === "failed") return `failed. ${error.message}`;
  if (state === "stopped") return "is stopped.";
  return usage ? `is complete, ${counted(usage.completion_tokens, "token")}.` : "is complete.";
}

/** Ask for these answers of a turn anew. maxTokens: in place of what they were sent with. */
function retry(turnView, views, maxTokens = null) {
  if (running) return notify("Wait for the running answers, or stop them.");
  const turn = entry.turns.find((candidate) => candidate.answers.includes(views[0].answer));
  turnView.clearComparison();
  for (const view of views) {
    Object.assign(view.answer, newAnswer(view.answer.model), { pieces: 0 }, maxTokens && { maxTokens });
    view.refresh();
  }
  turnView.update();
  views[0].root.focus({ preventScroll: true }); // the button that was pressed is gone
  run(turn, turnView, views);
}

function stop() {
  if (!running) return;
  running.controller.abort();
}

/** After sending, the prompt takes few lines, for the sake of the answers, until it is edited. */
function setSmall(isSmall) {
  byId("composer").classList.toggle("small", isSmall);
  if (isSmall) prompt.scrollTop = 0;
  if (isSmall && isTouch.matches) prompt.blur(); // closes the keyboard on the screen
}

let isWarned = false;

function save(changed) {
  if (history.put(changed) || isWarned) return;
  isWarned = true;
  notify("This browser does not keep the history: it is full or blocked here. Export it before you close the page.");
}

// --- the rail on narrow screens

function setRail(isOpen) {
  document.querySelector("main").inert = isOpen;
  document.body.classList.toggle("rail-open", isOpen);
  byId("open-rail").setAttribute("aria-expanded", String(isOpen));
}

function closeRail() {
  if (!document.body.classList.contains("rail-open")) return false;
  setRail(false);
  byId("open-rail").focus();
  return true;
}

matchMedia("(width < 50rem)").addEventListener("change", () => setRail(false));
byId("open-rail").addEventListener("click", () => {
  setRail(!document.body.classList.contains("rail-open"));
  if (document.body.classList.contains("rail-open")) byId("rail").querySelector("input:not([hidden])")?.focus();
});

// --- keys and buttons

document.addEventListener("keydown", (event) => {
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send();
  } else if (event.key === "Escape") {
    if (!closeRail()) stop();
  } else if (!isTyping(event.target) && !event.ctrlKey && !event.metaKey && !event.altKey) {
    if (event.key === "/") {
      event.preventDefault();
      closeRail();
      prompt.focus();
    } else if (event.key === "?") {
      event.preventDefault();
      byId("help").showModal();
    }
  }
});

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
for (const event of ["focus", "pointerdown", "input"]) prompt.addEventListener(event, () => setSmall(false));
byId("stop-button").addEventListener("click", stop);
byId("close-rail").addEventListener("click", closeRail);
byId("new-entry").addEventListener("click", clear);
byId("open-help").addEventListener("click", () => byId("help").showModal());
for (const radio of modes) {
  radio.addEventListener("change", () => {
    store({ mode: mode() });
    showControls();
  });
}
byId("system").addEventListener("input", () => store({ system: byId("system").value }));
addEventListener("pagehide", () => {
  if (!running) return;
  for (const answer of running.turn.answers) if (answer.state === "waiting" || answer.state === "writing") answer.state = "interrupted";
  history.put(running.entry);
});
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && !running && chosenIds().length) loadModels();
});

startDialogs();
startSettings();
startModels(showControls);
startHistory(showEntry);
startPrompt(() => prompt.value && showProblem(""));
startKeyDialog(() => loadModels({ hasNewKey: true }), loadModels);
setMode(stored.mode);
byId("system").value = typeof stored.system === "string" ? stored.system : "";
const last = history.entries().find((candidate) => candidate.id === recall(OPEN_ENTRY));
if (last) showEntry(last);
showControls();
loadModels();
