/** A list of tabs. Arrow keys move the choice; the Tab key reaches the chosen tab only. */

export class Tabs {
  #tabs;
  #follow;

  /**
   * @param {HTMLElement} list holds elements of role `tab`
   * @param {(tab: HTMLElement) => void} follow shows the view of the chosen tab
   */
  constructor(list, follow) {
    this.#tabs = [...list.querySelectorAll('[role="tab"]')];
    this.#follow = follow;
    for (const tab of this.#tabs) tab.addEventListener("click", () => this.choose(tab));
    list.addEventListener("keydown", (event) => this.#key(event));
  }

  get chosen() {
    return this.#tabs.find((tab) => tab.getAttribute("aria-selected") === "true");
  }

  find(view) {
    return this.#tabs.find((tab) => tab.dataset.view === view);
  }

  choose(chosen) {
    for (const tab of this.#tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
    }
    this.#follow(chosen);
  }

  #key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const here = this.#tabs.indexOf(this.chosen);
    const next = this.#tabs[(here + step + this.#tabs.length) % this.#tabs.length];
    next.focus();
    this.choose(next);
  }
}
