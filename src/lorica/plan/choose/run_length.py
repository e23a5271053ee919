"""How long to train: epochs, warm-up, and evaluations that stop a run that gets worse."""

from math import ceil

from lorica.plan.choose.fit import ROWS_PER_STEP
from lorica.plan.choose.reason import Reason
from lorica.plan.choose.situation import Situation

EPOCHS, MANY_ROWS, LEAST_STEPS, MOST_EPOCHS = 3, 50_000, 100, 20
SHORT_RUN, PATIENCE, EVALUATIONS = 200, 3, 10


def steps_of(rows: int, epochs: int) -> int:
    """Steps of a run, as training.plan has them: an epoch may end within a step."""
    return ceil(epochs * rows / ROWS_PER_STEP)


def choose_length(situation: Situation) -> list[Reason]:
    """epochs, warmup_ratio, eval_steps and early_stopping_patience."""
    rows = max(situation.rows.train, 1)
    epochs, why, source = EPOCHS, "the usual number", "article-epochs"
    if situation.rows.validation:
        why += "; the best adapter is kept if more epochs harm"
    if situation.goal == "fast" or rows >= MANY_ROWS:
        epochs = 1
        why = f"--goal {situation.goal}" if situation.goal == "fast" else f"{rows:,} rows are many"
        why += ": one pass; further epochs may make the results worse"
    elif steps_of(rows, EPOCHS) < LEAST_STEPS:
        epochs, source = min(ceil(LEAST_STEPS * ROWS_PER_STEP / rows), MOST_EPOCHS), "rule-steps"
        why = (
            f"{rows:,} rows: {EPOCHS} epochs are only {steps_of(rows, EPOCHS)} steps; "
            f"this makes {steps_of(rows, epochs)}"
        )
    steps = steps_of(rows, epochs)
    warmup = 0.1 if steps < SHORT_RUN else 0.03
    reasons = [
        Reason("epochs", epochs, why, (source,)),
        Reason(
            "warmup_ratio",
            warmup,
            f"{steps:,} steps: "
            + (
                "a short run, as those that the rates were checked in"
                if warmup > 0.03
                else "a thirtieth is enough"
            ),
            ("claims-warmup",) if warmup > 0.03 else ("results-defaults",),
        ),
    ]
    if situation.rows.validation:
        evaluate = max(steps // EVALUATIONS, 1)
        why = f"{EVALUATIONS} evaluations on the validation rows"
        reasons += [
            Reason("eval_steps", evaluate, why, ("rule-early-stopping",)),
            Reason(
                "early_stopping_patience",
                PATIENCE,
                "stops when the validation loss has not fallen three times, and keeps the best "
                "adapter: more epochs can harm",
                ("article-epochs", "rule-early-stopping"),
            ),
        ]
    return reasons
