/** Undo steps: a run of typing is one step, so is every other change. Knows no text area. */

const MOST_STEPS = 300;

export class History {
  #past = [];
  #future = [];
  #run = null;

  /**
   * Remember the state before a change. Changes of the same `run` (typing without a pause) are one
   * step. A change with null is a step of its own.
   */
  remember(state, run = null) {
    if (run !== null && run === this.#run) return;
    this.#run = run;
    this.#past.push(state);
    if (this.#past.length > MOST_STEPS) this.#past.shift();
    this.#future = [];
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  /** Returns the state before the last step, or null. `redo` returns to `now`. */
  undo(now) {
    return this.#move(this.#past, this.#future, now);
  }

  redo(now) {
    return this.#move(this.#future, this.#past, now);
  }

  #move(from, to, now) {
    this.#run = null;
    if (from.length === 0) return null;
    to.push(now);
    return from.pop();
  }
}
