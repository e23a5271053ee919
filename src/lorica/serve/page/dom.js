// Elements of the page. Text from models, adapters and the server is untrusted: it enters the page
// as text nodes and attribute values only, never as markup.

export const byId = (id) => document.getElementById(id);

/** A new element. properties: className, text, on (event name to listener), or attributes. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "className") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** A name that others chose, with characters that would hide or reorder others written out. */
export const visible = (name) => name.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

/** An element with such a name. */
export const named = (name) => element("bdi", { className: "name", text: visible(name) });

/** Speak `text` in a screen reader, once, when it is idle. */
export function announce(text) {
  host().append(byId("announcer"));
  byId("announcer").textContent = text;
}

/** Where messages stand: outside an open dialog nothing can be pressed or is read aloud. */
const host = () => document.querySelector("dialog[open]") ?? document.body;

/** Buttons with data-close close their dialog; messages leave it before it is hidden. */
export function startDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("close", () => document.body.append(byId("notice"), byId("announcer")));
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  }
  byId("notice-close").addEventListener("click", () => (byId("notice").hidden = true));
}

/** A message as a sentence: a capital letter first, unless it begins with a name, and a full stop. */
export function sentence(text) {
  const begun = text.replace(/^\p{Ll}+(?=[\s,;:.']|$)/u, (word) => word[0].toUpperCase() + word.slice(1));
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

let hideNotice = 0;

/** Show a short message for a while. action: {label, run} offers a way back: then it stays. */
export function notify(text, action) {
  const notice = byId("notice");
  const button = byId("notice-action");
  byId("notice-text").textContent = text;
  button.hidden = !action;
  if (action) {
    button.textContent = action.label;
    button.onclick = () => {
      notice.hidden = true;
      action.run();
    };
  }
  host().append(notice);
  notice.hidden = false;
  announce(text);
  clearTimeout(hideNotice);
  if (!action) hideNotice = setTimeout(() => (notice.hidden = true), 10_000);
}

export const counted = (count, noun, plural = `${noun}s`) => `${count.toLocaleString("en")} ${count === 1 ? noun : plural}`;

/** Whether a key pressed here is part of a text. */
export function isTyping(target) {
  if (target.closest?.("textarea, select, [contenteditable]")) return true;
  return target.matches?.("input:not([type=checkbox], [type=radio], [type=button])") ?? false;
}
