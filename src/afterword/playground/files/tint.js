/** The scale from probability to tint: eight steps from blue to orange, ordered by lightness. */

/** The least probability of each step but the last. */
export const STEPS = [0.8, 0.5, 0.3, 0.15, 0.07, 0.03, 0.01];
export const COUNT = STEPS.length + 1;

/** Returns the step of a log-probability; 0 is the most expected. */
export function stepOf(logprob) {
  const probability = Math.exp(logprob);
  const step = STEPS.findIndex((least) => probability >= least);
  return step === -1 ? STEPS.length : step;
}
