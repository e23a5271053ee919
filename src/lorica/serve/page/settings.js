// The settings of a request: read from their fields, checked, and kept for the next visit.

import { byId } from "./dom.js";

const STORED = "lorica.settings";
const MAX_INTEGER = 2 ** 53 - 1;
const NUMBERS = {
  temperature: { label: "Temperature", least: 0, most: 2 },
  top_p: { label: "top_p", least: 0, most: 1, isOpen: true },
  max_tokens: { label: "Max tokens", least: 1, most: MAX_INTEGER, isInteger: true },
  seed: { label: "Seed", least: 0, most: MAX_INTEGER, isInteger: true },
};
const INITIAL = { temperature: "0", top_p: "", max_tokens: "256", seed: "", stop: "" };
const MAX_STOPS = 4;
let context = null; // tokens of the shortest of the chosen models
const FIELDS = [...Object.keys(NUMBERS), "stop"];

function read(name, fallback) {
  try {
    const value = JSON.parse(localStorage.getItem(name));
    return value && typeof value === "object" ? value : fallback;
  } catch {
    return fallback;
  }
}

/** Values that outlive a reload: the fields, the chosen models, the kind of prompt. */
export const stored = { ...read(STORED, {}) };

export function store(values) {
  Object.assign(stored, values);
  try {
    localStorage.setItem(STORED, JSON.stringify(stored));
  } catch {
    // Storage is blocked or full: the settings last until the page is reloaded.
  }
}

/** Fill the fields, and keep and summarize what is typed into them. */
export function startSettings() {
  for (const name of FIELDS) {
    const value = stored[name];
    byId(name).value = typeof value === "string" ? value : INITIAL[name];
    byId(name).addEventListener("input", () => {
      store({ [name]: byId(name).value });
      summarize();
    });
  }
  const theme = byId("theme");
  theme.value = document.documentElement.dataset.theme ?? "";
  theme.addEventListener("change", () => {
    document.documentElement.dataset.theme = theme.value;
    try {
      localStorage.setItem("lorica.theme", theme.value);
    } catch {
      // Storage is blocked: the choice lasts until the page is reloaded.
    }
  });
  summarize();
}

/** Limit the maximum number of tokens by the shortest context of these cards, which holds one token
 * of a prompt at least. Until somebody sets it, it leaves the prompt half of that context. */
export function fitMaxTokens(cards) {
  const lengths = cards.map((card) => card.max_length).filter((length) => Number.isInteger(length) && length > 1);
  const field = byId("max_tokens");
  context = lengths.length ? Math.min(...lengths) : null;
  NUMBERS.max_tokens.most = context ? context - 1 : MAX_INTEGER;
  field.max = context ? context - 1 : "";
  if (typeof stored.max_tokens !== "string") field.value = String(Math.min(Number(INITIAL.max_tokens), Math.floor((context ?? Infinity) / 2)));
  summarize();
}

function summarize() {
  const { problem, values } = readSettings();
  const problemLine = byId("settings-problem");
  problemLine.hidden = !problem;
  problemLine.textContent = problem ?? "";
  byId("settings-summary").textContent = problem
    ? "Not valid"
    : [
        values.temperature === 0 ? "greedy" : null,
        values.temperature > 0 ? `temperature ${values.temperature}` : null,
        values.max_tokens ? `${values.max_tokens} tokens` : null,
        values.seed != null ? `seed ${values.seed}` : null,
      ]
        .filter(Boolean)
        .join(", ");
}

/** {values} as the API takes them; what is empty is left to the server. Or {problem}, a sentence. */
export function readSettings() {
  const values = {};
  let problem = null;
  for (const [name, rule] of Object.entries(NUMBERS)) {
    const field = byId(name);
    const number = Number(field.value);
    const isWrong =
      field.validity.badInput ||
      (field.value !== "" &&
        (number < rule.least || number > rule.most || (rule.isOpen && number === rule.least) || (rule.isInteger && !Number.isInteger(number))));
    field.setAttribute("aria-invalid", String(isWrong));
    if (isWrong) problem ??= `Set ${rule.label} to ${limits(rule)}, or leave it empty${name === "max_tokens" && context ? `: the shortest context of the chosen models has ${context.toLocaleString("en")} tokens` : ""}.`;
    else if (field.value !== "") values[name] = number;
  }
  const stops = byId("stop").value.split("\n").filter(Boolean).map(unescaped);
  byId("stop").setAttribute("aria-invalid", String(stops.length > MAX_STOPS));
  if (stops.length > MAX_STOPS) problem ??= `Stop has ${stops.length} lines; at most ${MAX_STOPS} are allowed.`;
  if (stops.length) values.stop = stops;
  return problem ? { problem } : { values };
}

function limits({ least, most, isInteger, isOpen }) {
  const kind = isInteger ? "a whole number" : "a number";
  if (isOpen) return `${kind} above ${least} and at most ${most}`;
  if (most === MAX_INTEGER) return `${kind}, at least ${least}`;
  return `${kind} from ${least} to ${most}`;
}

const ESCAPES = { n: "\n", t: "\t", r: "\r", "\\": "\\" };
const unescaped = (text) => text.replace(/\\([ntr\\])/g, (_, letter) => ESCAPES[letter]);
