// The history: entries in localStorage, bounded, newest first. Each change reads the storage anew,
// so that two tabs do not overwrite each other's entries.

const STORED = "lorica.history";
export const MAX_ENTRIES = 200;
const MAX_CHARACTERS = 2_000_000;
/** Of the stored JSON: browsers keep about five million for a server. */

let unstored = []; // the entries, where the storage is blocked
let isBlocked = false;

/** The entries that the storage holds. What is not an entry is left out. */
export function entries() {
  if (isBlocked) return unstored;
  try {
    const value = JSON.parse(localStorage.getItem(STORED) ?? "[]");
    return Array.isArray(value) ? value.filter(isEntry) : [];
  } catch {
    return [];
  }
}

const isText = (value) => typeof value === "string";
const isAnswer = (value) => isText(value?.model) && isText(value.text) && isText(value.state);
const isTurn = (value) => isText(value?.prompt) && Array.isArray(value.answers) && value.answers.every(isAnswer);
const isEntry = (value) =>
  isText(value?.id) && Number.isFinite(value.when) && Array.isArray(value.turns) && value.turns.length > 0 && value.turns.every(isTurn);

/** Store an entry, new or changed. Returns: whether it will survive a reload. */
export function put(entry) {
  const others = entries().filter((other) => other.id !== entry.id);
  return write([...others, entry]);
}

/** Remove the entries with these ids. Returns: those removed, for an undo. */
export function remove(ids) {
  const all = entries();
  write(all.filter((entry) => !ids.has(entry.id)));
  return all.filter((entry) => ids.has(entry.id));
}

export const restore = (removed) => write([...entries().filter((e) => !removed.some((r) => r.id === e.id)), ...removed]);

function write(list) {
  const newest = list.sort((a, b) => b.when - a.when).slice(0, MAX_ENTRIES);
  if (isBlocked) {
    unstored = newest;
    return false;
  }
  const texts = newest.map((entry) => JSON.stringify(entry));
  let length = 2;
  let count = texts.findIndex((text) => (length += text.length + 1) > MAX_CHARACTERS);
  if (count < 0) count = texts.length;
  while (count >= 0) {
    try {
      localStorage.setItem(STORED, `[${texts.slice(0, count).join(",")}]`);
      return count > 0 || texts.length === 0;
    } catch (error) {
      if (error.name !== "QuotaExceededError" || count === 0) break;
      count = Math.floor(count / 2);
    }
  }
  isBlocked = true;
  unstored = newest;
  return false;
}

/** Call `listener` when another tab changes the history. */
export function watch(listener) {
  addEventListener("storage", (event) => {
    if (event.key === STORED || event.key === null) listener();
  });
}

/** The whole history as a JSON document. */
export const exported = () =>
  JSON.stringify({ format: "lorica.history", version: 1, exported: new Date().toISOString(), entries: entries() }, null, 2);
