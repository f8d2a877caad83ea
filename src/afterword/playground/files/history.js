/** Steps that can be taken back: typing in runs, everything else one by one. Knows no text area. */

const MOST_STEPS = 300;

export class History {
  #past = [];
  #future = [];
  #run = null;

  /**
   * Remember the state before a change. Changes of one `run` (typing, without a pause) are one
   * step; null is a step of its own.
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

  /** What comes next is a new step. */
  pause() {
    this.#run = null;
  }

  /** The state to go back to, or null; `now` can be come back to by `redo`. */
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
