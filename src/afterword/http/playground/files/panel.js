/** The panel beside the page: four views behind tabs; on small screens a drawer. */

export class Panel extends EventTarget {
  #box;
  #toggle;
  #tabs;

  constructor(box, toggle) {
    super();
    this.#box = box;
    this.#toggle = toggle;
    this.#tabs = [...box.querySelectorAll('[role="tab"]')];
    for (const tab of this.#tabs) tab.addEventListener("click", () => this.#show(tab));
    box.querySelector('[role="tablist"]').addEventListener("keydown", (event) => this.#key(event));
    toggle.addEventListener("click", () => this.#turn(!this.#isOpen));
    this.#turn(!this.#isDrawer);
    matchMedia("(max-width: 60rem)").addEventListener("change", () => this.#turn(!this.#isDrawer));
  }

  /** The name of the view that can be seen, or null. */
  get shown() {
    const tab = this.#tabs.find((each) => each.getAttribute("aria-selected") === "true");
    return this.#isOpen ? tab.dataset.view : null;
  }

  open(view) {
    this.#show(this.#tabs.find((tab) => tab.dataset.view === view));
    if (!this.#isOpen) this.#turn(true);
  }

  /** Close it where it lies over the page. */
  closeDrawer() {
    if (this.#isDrawer && this.#isOpen) {
      this.#turn(false);
      this.#toggle.focus();
    }
  }

  get #isOpen() {
    return this.#toggle.getAttribute("aria-expanded") === "true";
  }

  get #isDrawer() {
    return matchMedia("(max-width: 60rem)").matches;
  }

  #turn(open) {
    this.#toggle.setAttribute("aria-expanded", String(open));
    this.#box.hidden = !open;
    this.dispatchEvent(new Event("shown"));
  }

  #show(chosen) {
    for (const tab of this.#tabs) {
      const on = tab === chosen;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !on;
    }
    this.dispatchEvent(new Event("shown"));
  }

  #key(event) {
    const here = this.#tabs.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined || here === -1) return;
    event.preventDefault();
    const next = this.#tabs[(here + step + this.#tabs.length) % this.#tabs.length];
    next.focus();
    this.#show(next);
  }
}
