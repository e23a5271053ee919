// One answer on the page: its figures, its text as it is written, its error.

import { describe } from "./about.js";
import { counted, element, named, notify, sentence } from "./dom.js";
import { choiceOf } from "./models.js";

const FIGURES = { tokens: "Tokens", finish: "Finish", speed: "Speed", first: "First token" };
const IDENTITY = { digest: "Digest", generation: "Generation" };
/** Of what answered: in the panel of the button About. */
const FINISH = { stopped: "by you", failed: "error", interrupted: "interrupted" };
const MIN_SECONDS = 0.05;
const MIN_TOKENS = 8;
/** Of a speed: what arrives faster came in one piece, and fewer tokens tell nothing. */
let number = 0;

/** Shows an answer: {model, text, state, finish, usage, firstToken, seconds, digest, generation,
 * error}. state: waiting, writing, done, stopped, failed or interrupted. */
export class AnswerView {
  /** onRetry, onCompare: called with this view when its button is pressed; onShorten: with the
   * maximum number of tokens that fits. */
  constructor(answer, { onRetry, onCompare, onShorten }) {
    this.answer = answer;
    this.pending = "";
    this.frame = 0;
    const titleId = `answer-${(number += 1)}`;
    this.figures = {};
    const list = element("dl", { className: "figures" }, ...this.rows(FIGURES, "unseen"));
    this.identity = element("dl", { className: "about identity" }, ...this.rows(IDENTITY));
    this.body = element("div", { className: "answer-text", dir: "auto" });
    this.problem = element("div", { className: "failure", hidden: true });
    this.aboutPanel = element("div", { className: "answer-about", id: `${titleId}-about`, hidden: true }, this.identity);
    this.compareButton = this.button("Compare", () => onCompare(this), { "aria-pressed": "false" });
    this.compareButton.disabled = true;
    this.copyButton = this.button("Copy", () => this.copy());
    Object.assign(this, { onRetry, onShorten });
    const actions = element("div", { className: "answer-actions" }, this.aboutButton(), this.compareButton, this.copyButton);
    this.root = element(
      "article",
      { className: "answer", "aria-labelledby": titleId, tabindex: -1 },
      element("div", { className: "answer-head" }, element("h3", { id: titleId, title: answer.model }, named(answer.model)), actions),
      list,
      element("div", { className: "answer-content" }, this.aboutPanel, this.body, this.problem),
    );
    this.refresh();
  }

  rows(labels, className = "") {
    return Object.entries(labels).map(([key, label]) => {
      this.figures[key] = element("dd", { className: `figure-${key}` });
      return element("div", {}, element("dt", { className, text: label }), this.figures[key]);
    });
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
        this.aboutPanel.replaceChildren(this.identity, card ? describe(card, { hasIdentity: false }) : element("p", { className: "quiet", text: "No longer served." }));
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
    if (this.answer.text.length - this.pending.length < 2) this.mark(null);
    else this.body.lastChild.appendData(this.pending);
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
    if (state === "done" && text === "") this.showNote("The answer is empty.");
    else if (this.answer.error) this.showProblem(this.answer.error);
    else this.problem.hidden = true;
    this.copyButton.disabled = text === "" || this.isRunning;
    this.showFigures();
  }

  /** Show the text with the runs of `compare` marked; null: plain. One space at the start, which
   * many tokenizers write, takes no room. */
  mark(runs) {
    this.compareButton.setAttribute("aria-pressed", String(runs !== null));
    const { text } = this.answer;
    const lead = /^ (?! )/.test(text) ? element("span", { className: "lead", text: " " }) : "";
    const nodes = (runs ?? [[text, false]]).map(([run, isDifferent], index) => {
      const rest = lead && index === 0 ? run.slice(1) : run;
      return isDifferent ? element("mark", { text: rest }) : document.createTextNode(rest);
    });
    this.body.replaceChildren(lead, ...nodes);
  }

  showFigures() {
    const { answer, figures } = this;
    const tokens = answer.usage?.completion_tokens ?? answer.pieces ?? 0;
    const speed = tokens >= MIN_TOKENS && answer.seconds > MIN_SECONDS ? (tokens - 1) / answer.seconds : null;
    const about = answer.usage ? "" : "≈ ";
    const prompt = answer.usage?.prompt_tokens;
    const before = prompt == null ? "" : `${prompt.toLocaleString("en")} → `;
    set(figures.tokens, tokens || prompt ? `${before}${about}${counted(tokens, "token")}` : "");
    set(figures.finish, FINISH[answer.state] ?? (answer.state === "done" ? (answer.finish ?? "") : answer.state));
    set(figures.speed, speed === null ? "" : `${about}${speed.toFixed(speed < 100 ? 1 : 0)} tokens/s`);
    set(figures.first, answer.firstToken == null ? "" : `first after ${duration(answer.firstToken)}`);
    set(figures.digest, answer.digest || (answer.digest === "" ? "none: the base itself" : ""));
    set(figures.generation, answer.generation == null || answer.digest === "" ? "" : String(answer.generation));
  }

  showNote(text) {
    this.problem.className = "note quiet";
    this.problem.replaceChildren(element("p", { text }));
    this.problem.hidden = false;
  }

  /** error: {message, fix, maxTokens, retryAt}. maxTokens: the largest that the server accepts.
   * retryAt: the time before which it refuses. sameAs: the name of an answer that has the message. */
  showProblem(error, sameAs = null) {
    const key = JSON.stringify([error, sameAs]);
    if (!this.problem.hidden && this.problemKey === key) return; // its button may have the focus
    this.problemKey = key;
    const again = { type: "button", className: "second" };
    const button = error.maxTokens
      ? element("button", { ...again, text: `Send with ${error.maxTokens.toLocaleString("en")}`, on: { click: () => this.onShorten(error.maxTokens) } })
      : element("button", { ...again, text: "Retry", on: { click: () => this.onRetry(this) } });
    const parts = sameAs
      ? [element("p", { className: "failure-same" }, "The same message as for ", named(sameAs), ".")]
      : [element("p", { className: "failure-what" }, element("bdi", { text: error.message }))];
    if (error.fix && !sameAs) parts.push(element("p", { className: "failure-fix" }, element("bdi", { text: sentence(`Fix: ${error.fix}`) })));
    if (!(sameAs && error.maxTokens)) parts.push(element("p", {}, button));
    this.problem.className = "failure";
    this.problem.replaceChildren(...parts);
    this.problem.hidden = false;
    if (error.retryAt) countDown(button, error.retryAt);
  }
}

/** Without a text the figure is not shown. */
function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
  node.parentElement.hidden = text === "";
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
