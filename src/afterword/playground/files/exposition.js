/** Prometheus' text format, as much as the live view needs. */

/** Returns samples by name, summed over labels. */
export function totals(text) {
  const sums = new Map();
  for (const line of text.split("\n")) {
    const found = /^([A-Za-z_:][\w:]*)(?:\{.*\})? (\S+)$/.exec(line);
    if (found === null) continue;
    const value = Number(found[2]);
    if (Number.isFinite(value)) sums.set(found[1], (sums.get(found[1]) ?? 0) + value);
  }
  return sums;
}

/**
 * Returns what the live view plots, from two scrapes `elapsed_s` apart. `hits` is the share of
 * prompt tokens that came from the cache, or null if there were no prompt tokens. `cells` is null if
 * other servers compute.
 */
export function rates(before, now, elapsed_s) {
  const engine = (name) => now.get(`afterword_engine_${name}`) ?? 0;
  const grown = (name) => {
    const key = `afterword_engine_${name}_total`;
    // A restarted server counts from 0.
    return Math.max(0, (now.get(key) ?? 0) - (before.get(key) ?? 0));
  };
  const [cached, prefilled] = [grown("cached_tokens"), grown("prefilled_tokens")];
  return {
    running: engine("running_sequences"),
    waiting: engine("waiting_sequences"),
    tokens_per_s: grown("generated_tokens") / elapsed_s,
    cells: engine("cells_total") > 0 ? engine("cells_used") : null,
    cells_total: engine("cells_total"),
    hits: cached + prefilled > 0 ? cached / (cached + prefilled) : null,
  };
}
