"""Character accuracy: the share of characters that are right, each at its place.

Of a row: characters that equal the reference's at the same place, divided by the longer of the two
lengths; with several references the best. The value is the mean over rows. One character too many
shifts all behind it: the measure suits codes, keys and fixed forms; chrf suits prose.
"""

from collections.abc import Sequence

from lorica.evaluation.task import Task, TaskScores


class CharacterAccuracy(Task, name="character_accuracy"):
    def score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> TaskScores:
        pairs = zip(answers, references, strict=True)
        return self.means([max(_share(a.strip(), r.strip()) for r in texts) for a, texts in pairs])


def _share(answer: str, reference: str) -> float:
    longest = max(len(answer), len(reference))
    right = sum(a == b for a, b in zip(answer, reference, strict=False))
    return right / longest if longest else 1.0
