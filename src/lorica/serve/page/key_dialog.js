// The dialog that asks for an API key, when the server wants one.

import { apiKey, setApiKey } from "./api.js";
import { byId, notify } from "./dom.js";

const dialog = byId("key-dialog");
const field = byId("key");

/** tryKey: called after a key was entered; resolves to whether the server accepts it.
 * onForget: called after the key was forgotten. */
export function startKeyDialog(tryKey, onForget) {
  byId("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const key = field.value.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) {
      return showProblem("A key has letters, digits and signs, and no spaces: copy it anew.");
    }
    setApiKey(key);
    if (!(await tryKey())) return;
    field.value = "";
    dialog.close();
    byId("prompt").focus();
  });
  byId("forget-key").addEventListener("click", () => {
    setApiKey("");
    notify("The key is forgotten.");
    onForget();
  });
}

/** problem: what was wrong with the key that was entered; "": none was. */
export function askForKey(problem) {
  showProblem(problem);
  if (!dialog.open) dialog.showModal();
  field.select();
}

function showProblem(text) {
  byId("key-problem").textContent = text;
  byId("key-problem").hidden = !text;
}

/** Say whether a key is in use. */
export function showKeyState() {
  byId("key-state").hidden = !apiKey();
}
