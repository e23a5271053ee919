// The words in which two texts differ.

const MAX_CELLS = 6_000_000;
/** Of the table of common subsequences: two bytes each. */

const wordsOf = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];

/**
 * Compare two texts word by word. Returns {left, right}: runs of [text, isDifferent] that join to
 * the texts, and how many words differ in each. Longest common subsequence; beyond MAX_CELLS all
 * between the common start and the common end counts as different.
 */
export function compare(left, right) {
  const a = wordsOf(left);
  const b = wordsOf(right);
  const [isDifferentA, isDifferentB] = differences(a, b);
  return { left: runs(a, isDifferentA), right: runs(b, isDifferentB) };
}

function differences(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a.at(-1 - end) === b.at(-1 - end)) end += 1;
  const isDifferent = [a, b].map((words) =>
    words.map((_, index) => index >= start && index < words.length - end),
  );
  const n = a.length - start - end;
  const m = b.length - start - end;
  if ((n + 1) * (m + 1) > MAX_CELLS) return isDifferent;

  // lengths[i * (m + 1) + j]: of the longest common subsequence of a[i:] and b[j:] in the middle.
  const lengths = new Uint16Array((n + 1) * (m + 1));
  for (let i = n - 1; i >= 0; i -= 1) {
    for (let j = m - 1; j >= 0; j -= 1) {
      const here = i * (m + 1) + j;
      lengths[here] =
        a[start + i] === b[start + j]
          ? lengths[here + m + 2] + 1
          : Math.max(lengths[here + m + 1], lengths[here + 1]);
    }
  }
  for (let i = 0, j = 0; i < n && j < m; ) {
    const here = i * (m + 1) + j;
    if (a[start + i] === b[start + j]) {
      isDifferent[0][start + i] = isDifferent[1][start + j] = false;
      i += 1;
      j += 1;
    } else if (lengths[here + m + 1] >= lengths[here + 1]) i += 1;
    else j += 1;
  }
  return isDifferent;
}

/** Neighbouring words of one kind as one run. A space between two different words is in the run. */
function runs(words, isDifferent) {
  const joined = [];
  let count = 0;
  words.forEach((word, index) => {
    const isSpace = word.trim() === "";
    const marked = isSpace
      ? Boolean(isDifferent[index - 1] && isDifferent[index + 1])
      : isDifferent[index];
    if (marked && !isSpace) count += 1;
    if (joined.at(-1)?.[1] === marked) joined.at(-1)[0] += word;
    else joined.push([word, marked]);
  });
  return { runs: joined, count };
}
