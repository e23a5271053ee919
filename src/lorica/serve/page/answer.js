// One answer on the page: its figures, its text as it is written, its error.

import { describe, shortDigest } from "./about.js";
import { byId, element, named, notify } from "./dom.js";
import { choiceOf } from "./models.js";

const FIGURES = {
  speed: "Speed",
  first: "First token",
  tokens: "Tokens",
  finish: "Finish",
  digest: "Digest",
  generation: "Generation",
};
const FINISH = { stopped: "by you", failed: "error", interrupted: "interrupted" };
const MIN_SECONDS = 0.05;
/** Of a speed: what arrives faster came in one piece, and tells nothing. */
let number = 0;

/** Shows an answer: {model, text, state, finish, usage, firstToken, seconds, digest, generation,
 * error}. state: waiting, writing, done, stopped, failed or interrupted. */
export class AnswerView {
  /** onRetry, onCompare: called with this view when its button is pressed. */
  constructor(answer, { onRetry, onCompare }) {
    this.answer = answer;
    this.pending = "";
    this.frame = 0;
    const titleId = `answer-${(number += 1)}`;
    this.figures = {};
    const list = element("dl", { className: "figures" });
    for (const [key, label] of Object.entries(FIGURES)) {
      this.figures[key] = element("dd");
      list.append(element("div", { className: `figure-${key}` }, element("dt", { text: label }), this.figures[key]));
    }
    this.body = element("div", { className: "answer-text", dir: "auto" });
    this.problem = element("div", { className: "failure", hidden: true });
    this.aboutPanel = element("div", { className: "answer-about", id: `${titleId}-about`, hidden: true });
    this.compareButton = this.button("Compare", () => onCompare(this), { "aria-pressed": "false" });
    this.compareButton.disabled = true;
    this.copyButton = this.button("Copy", () => this.copy());
    this.onRetry = onRetry;
    const actions = element("div", { className: "answer-actions" }, this.aboutButton(), this.compareButton, this.copyButton);
    this.root = element(
      "article",
      { className: "answer", "aria-labelledby": titleId, tabindex: -1 },
      element("div", { className: "answer-head" }, element("h3", { id: titleId, title: answer.model }, named(answer.model)), actions),
      this.aboutPanel,
      list,
      element("div", { className: "answer-content" }, this.body, this.problem),
    );
    this.refresh();
  }

  button(label, listener, attributes = {}) {
    const name = `${label} ${this.answer.model}`;
    return element("button", { type: "button", className: "plain", text: label, "aria-label": name, on: { click: listener }, ...attributes });
  }

  aboutButton() {
    const button = this.button(
      "About",
      () => {
        const card = choiceOf(this.answer.model)?.card;
        this.aboutPanel.replaceChildren(card ? describe(card) : element("p", { className: "quiet", text: "No longer served." }));
        this.aboutPanel.hidden = !this.aboutPanel.hidden;
        button.setAttribute("aria-expanded", String(!this.aboutPanel.hidden));
      },
      { "aria-expanded": "false", "aria-controls": this.aboutPanel.id },
    );
    return button;
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.answer.text);
      notify("The answer is copied.");
    } catch {
      notify("The browser did not allow copying: select the text, and copy it.");
    }
  }

  get isRunning() {
    return this.answer.state === "waiting" || this.answer.state === "writing";
  }

  /** Add text to the answer. It is painted once a frame, however many tokens arrive. */
  append(text) {
    this.answer.text += text;
    this.pending += text;
    this.frame ||= requestAnimationFrame(() => this.paint());
  }

  paint() {
    this.frame = 0;
    if (!this.body.firstChild) this.body.append("");
    this.body.lastChild.appendData(this.pending);
    this.pending = "";
    this.showFigures();
  }

  /** Show the answer as it is now. */
  refresh() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.pending = "";
    this.mark(null);
    const { state, text } = this.answer;
    this.root.dataset.state = state;
    this.root.setAttribute("aria-busy", String(this.isRunning));
    this.body.hidden = text === "" && (state === "failed" || state === "done");
    if (state === "done" && text === "") this.showProblem({ message: "The answer is empty.", isFinal: true });
    else if (this.answer.error) this.showProblem(this.answer.error);
    else this.problem.hidden = true;
    this.copyButton.disabled = text === "" || this.isRunning;
    this.showFigures();
  }

  /** Show the text with the runs of `compare` marked; null: plain. */
  mark(runs) {
    this.compareButton.setAttribute("aria-pressed", String(runs !== null));
    const nodes = runs?.map(([text, isDifferent]) => (isDifferent ? element("mark", { text }) : document.createTextNode(text)));
    this.body.replaceChildren(...(nodes ?? [document.createTextNode(this.answer.text)]));
  }

  showFigures() {
    const { answer, figures } = this;
    const tokens = answer.usage?.completion_tokens ?? answer.pieces ?? 0;
    const speed = tokens > 1 && answer.seconds > MIN_SECONDS ? (tokens - 1) / answer.seconds : null;
    const about = answer.usage ? "" : "≈ ";
    set(figures.speed, speed === null ? "–" : `${about}${speed.toFixed(speed < 100 ? 1 : 0)} tok/s`);
    set(figures.first, answer.firstToken == null ? "–" : duration(answer.firstToken));
    const prompt = answer.usage?.prompt_tokens;
    set(figures.tokens, tokens || prompt ? `${prompt == null ? "" : `${prompt.toLocaleString("en")} → `}${about}${tokens.toLocaleString("en")}` : "–");
    set(figures.finish, FINISH[answer.state] ?? (answer.state === "done" ? (answer.finish ?? "–") : answer.state));
    set(figures.digest, answer.digest ? shortDigest(answer.digest) : answer.digest === "" ? "base" : "–");
    figures.digest.title = answer.digest ?? "";
    set(figures.generation, answer.generation == null || answer.digest === "" ? "–" : String(answer.generation));
  }

  /** error: {message, fix, retryAt, isFinal}. retryAt: the time before which the server refuses. */
  showProblem(error) {
    const retry = !error.isFinal ? element("button", { type: "button", className: "second", text: "Retry", on: { click: () => this.onRetry(this) } }) : null;
    const parts = [element("p", { className: "failure-what" }, element("bdi", { text: error.message }))];
    if (error.fix) parts.push(element("p", { className: "failure-fix" }, element("bdi", { text: `Fix: ${error.fix}` })));
    this.problem.replaceChildren(...parts, ...(retry ? [element("p", {}, retry)] : []));
    this.problem.hidden = false;
    if (retry && error.retryAt) countDown(retry, error.retryAt);
  }
}

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function duration(milliseconds) {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(2)} s`;
}

/** Hold a Retry button back until the server accepts again, and say for how long. */
function countDown(button, retryAt) {
  const left = Math.ceil((retryAt - Date.now()) / 1000);
  button.disabled = left > 0;
  button.textContent = left > 0 ? `Retry in ${left} s` : "Retry";
  if (left > 0) setTimeout(() => button.isConnected !== false && countDown(button, retryAt), 1000);
}
