// One turn on the page: a prompt, and the answers to it side by side.

import { AnswerView } from "./answer.js";
import { byId, counted, element } from "./dom.js";
import { compare } from "./diff.js";

/** A turn of an entry: {prompt, answers}. */
export class TurnView {
  constructor(turn, onRetry) {
    this.compared = [];
    this.summary = element("p", { className: "quiet compared", role: "status" });
    const handlers = { onRetry: (view) => onRetry(this, view), onCompare: (view) => this.toggle(view) };
    this.answers = turn.answers.map((answer) => new AnswerView(answer, handlers));
    const columns = element("div", { className: "columns", "data-count": this.answers.length }, ...this.answers.map((view) => view.root));
    this.root = element(
      "section",
      { className: "turn" },
      element("h2", { className: "turn-prompt" }, element("span", { className: "unseen", text: "Prompt: " }), element("span", { dir: "auto", text: turn.prompt })),
      columns,
      this.summary,
    );
    this.offerCompare();
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
        ? `${names} gave the same answer.`
        : `Marked: ${counted(left.count, "word")} of ${first.answer.model} and ${counted(right.count, "word")} of ${second.answer.model} that the other does not have.`;
  }
}

/** Show a turn at the end of the page, its prompt at the top of the visible part. */
export function addTurn(view) {
  byId("turns").append(view.root);
  view.root.scrollIntoView({ block: "start" });
}
