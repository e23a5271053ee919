// What is kept until the tab is closed. Where storage is blocked, until the page is reloaded.

const kept = new Map();

export function recall(name) {
  try {
    return sessionStorage.getItem(name) ?? kept.get(name) ?? "";
  } catch {
    return kept.get(name) ?? "";
  }
}

/** Keep a text; "" forgets it. */
export function remember(name, text) {
  kept.set(name, text);
  try {
    if (text) sessionStorage.setItem(name, text);
    else sessionStorage.removeItem(name);
  } catch {
    // Blocked or full: `kept` has it.
  }
}
