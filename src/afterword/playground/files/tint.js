/** The scale from probability to tint: eight steps from blue to orange, ordered by lightness. */

import { logprobOf } from "./tokens.js";

/** The least probability of each step but the last. */
export const STEPS = [0.8, 0.5, 0.3, 0.15, 0.07, 0.03, 0.01];
export const COUNT = STEPS.length + 1;

/** Returns the step of a log-probability; 0 is the most expected. */
export function stepOf(logprob) {
  const probability = Math.exp(logprob);
  const step = STEPS.findIndex((least) => probability >= least);
  return step === -1 ? STEPS.length : step;
}

/** Two neighbours of one step that touch get different variants, so that they stay apart. */
export const VARIANTS = ["", "b"];

/**
 * Returns the parts of a text to tint, for the groups from `first` up to `end`. White space around a
 * word has no tint: it would run past the end of a line, and join words of one step.
 */
export function spansOf(groups, first, end, text) {
  const spans = [];
  for (let i = first; i < end; i += 1) {
    const group = groups[i];
    const logprob = logprobOf(group);
    if (logprob === null || group.start === group.end) continue;
    const whole = text.slice(group.start, group.end);
    const words = whole.trim();
    // Only a line end may stand alone; it takes no room.
    if (words === "" && !whole.includes("\n")) continue;
    const start = group.start + (words === "" ? 0 : whole.indexOf(words));
    const stop = words === "" ? group.end : start + words.length;
    const before = spans.at(-1);
    const step = stepOf(logprob);
    const touches = before !== undefined && before.end === start && before.step === step;
    spans.push({ start, end: stop, step, variant: touches ? 1 - before.variant : 0 });
  }
  return spans;
}
