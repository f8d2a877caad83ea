/** The side panel: four views behind tabs. On small screens it is a drawer. */

import { Tabs } from "./tabs.js";

export class Panel extends EventTarget {
  #box;
  #toggle;
  #tabs;

  constructor(box, toggle) {
    super();
    this.#box = box;
    this.#toggle = toggle;
    this.#tabs = new Tabs(box.querySelector('[role="tablist"]'), (tab) => this.#show(tab));
    toggle.addEventListener("click", () => this.#turn(!this.#isOpen));
    box.querySelector("#panel-close").addEventListener("click", () => this.closeDrawer());
    document.addEventListener("pointerdown", ({ target }) => {
      // A press outside closes a drawer, and does there what it does anyway.
      if (this.isDrawer && this.#isOpen && !box.contains(target) && !toggle.contains(target)
        && target.closest("dialog") === null) this.#turn(false);
    });
    this.#turn(!this.isDrawer);
    matchMedia("(max-width: 60rem)").addEventListener("change", () => this.#turn(!this.isDrawer));
  }

  /** The name of the visible view, or null. */
  get shown() {
    return this.#isOpen ? this.#tabs.chosen.dataset.view : null;
  }

  open(view) {
    this.#tabs.choose(this.#tabs.find(view));
    if (!this.#isOpen) this.#turn(true);
  }

  /** Close the panel if it covers the page. */
  closeDrawer() {
    if (this.isDrawer && this.#isOpen) {
      this.#turn(false);
      this.#toggle.focus();
    }
  }

  get #isOpen() {
    return this.#toggle.getAttribute("aria-expanded") === "true";
  }

  /** Whether the panel covers the page while it is open. */
  get isDrawer() {
    return matchMedia("(max-width: 60rem)").matches;
  }

  #turn(open) {
    this.#toggle.setAttribute("aria-expanded", String(open));
    this.#box.hidden = !open;
    this.dispatchEvent(new Event("shown"));
  }

  #show(chosen) {
    for (const view of this.#box.querySelectorAll('[role="tabpanel"]')) {
      view.hidden = view.id !== chosen.getAttribute("aria-controls");
    }
    this.dispatchEvent(new Event("shown"));
  }
}
