// One turn on the page: a prompt, and the answers to it side by side.

import { AnswerView } from "./answer.js";
import { byId, counted, element } from "./dom.js";
import { compare } from "./diff.js";

/** A turn of an entry: {prompt, answers}. */
export class TurnView {
  /** onRetry: called with this view and those of the answers to ask for again; maxTokens: of them. */
  constructor(turn, onRetry) {
    this.compared = [];
    this.summary = element("p", { className: "quiet compared", role: "status" });
    const handlers = { onRetry: (view) => onRetry(this, [view]), onCompare: (view) => this.toggle(view), onShorten: () => this.shorten(onRetry) };
    this.answers = turn.answers.map((answer) => new AnswerView(answer, handlers));
    const columns = element("div", { className: "columns", "data-count": this.answers.length }, ...this.answers.map((view) => view.root));
    this.root = element(
      "section",
      { className: "turn" },
      this.question(turn.prompt),
      columns,
      this.summary,
    );
    this.update();
  }

  /** The prompt; a long one is cut to a few lines, with a button that shows all of it. */
  question(prompt) {
    const text = element("h2", { className: "turn-prompt" }, element("span", { className: "unseen", text: "Prompt: " }), element("span", { dir: "auto", text: prompt }));
    const button = element("button", { type: "button", className: "plain", text: "Show all", "aria-expanded": "false", hidden: true });
    button.addEventListener("click", () => {
      const isWhole = text.classList.toggle("whole");
      button.textContent = isWhole ? "Show less" : "Show all";
      button.setAttribute("aria-expanded", String(isWhole));
    });
    new ResizeObserver(() => {
      if (!text.classList.contains("whole")) button.hidden = text.scrollHeight <= text.clientHeight + 1;
    }).observe(text);
    return element("div", { className: "question" }, text, button);
  }

  /** Show what depends on all answers: after one of them has ended. */
  update() {
    this.offerCompare();
    this.foldProblems();
  }

  /** Show a message that several answers share once in full, with the least maximum of tokens. */
  foldProblems() {
    const first = new Map();
    for (const view of this.answers.filter(({ answer }) => answer.state === "failed" && answer.error)) {
      const { error, model } = view.answer;
      const key = JSON.stringify([error.message, error.fix]);
      view.showProblem(error, first.get(key) ?? null);
      if (!first.has(key)) first.set(key, model);
    }
  }

  /** Ask again for all answers whose prompt and maximum number of tokens are too long together. */
  shorten(onRetry) {
    const views = this.answers.filter(({ answer }) => answer.error?.maxTokens);
    onRetry(this, views, Math.min(...views.map(({ answer }) => answer.error.maxTokens)));
  }

  /** Enable the Compare buttons of answers with text, once two of them have ended. */
  offerCompare() {
    const ended = this.answers.filter((view) => !view.isRunning && view.answer.text !== "");
    for (const view of this.answers) {
      view.compareButton.hidden = this.answers.length < 2;
      view.compareButton.disabled = ended.length < 2 || !ended.includes(view);
    }
  }

  /** Compare this answer with another: of two answers both at once, of more the two last pressed. */
  toggle(view) {
    const candidates = this.answers.filter((other) => !other.compareButton.disabled);
    if (this.compared.includes(view)) {
      this.compared = candidates.length === 2 ? [] : this.compared.filter((other) => other !== view);
    } else {
      this.compared = candidates.length === 2 ? candidates : [...this.compared.slice(-1), view];
    }
    this.showComparison();
  }

  clearComparison() {
    this.compared = [];
    this.showComparison();
  }

  showComparison() {
    this.answers.filter((view) => !view.isRunning).forEach((view) => view.mark(null));
    this.compared.forEach((view) => view.compareButton.setAttribute("aria-pressed", "true"));
    const [first, second] = this.compared;
    this.summary.textContent = first ? "Choose the answer to compare it with." : "";
    if (!second) return;
    const { left, right } = compare(first.answer.text, second.answer.text);
    first.mark(left.runs);
    second.mark(right.runs);
    const names = `${first.answer.model} and ${second.answer.model}`;
    this.summary.textContent =
      left.count + right.count === 0
        ? `The answers of ${names} are the same.`
        : `Marked: ${counted(left.count, "word")} of ${first.answer.model} and ${counted(right.count, "word")} of ${second.answer.model} that the other does not have.`;
  }
}

/** Show a turn at the end of the page, its prompt at the top of the visible part. */
export function addTurn(view) {
  byId("turns").append(view.root);
  view.root.scrollIntoView({ block: "start" });
}
