/** What all dialogs share: a close button, and a press outside that closes. */

/** Connect every dialog of the page. */
export function dressDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const button of dialog.querySelectorAll("[data-close]")) {
      button.addEventListener("click", () => dialog.close());
    }
    // A press that begins inside, as a selection of text does, closes nothing.
    let outside = false;
    dialog.addEventListener("pointerdown", (event) => {
      outside = event.target === dialog && !contains(dialog, event);
    });
    dialog.addEventListener("click", (event) => {
      if (outside && event.target === dialog && !contains(dialog, event)) dialog.close();
    });
  }
}

/** Whether a point is in the box of a dialog. Its backdrop belongs to it, too. */
function contains(dialog, { clientX: x, clientY: y }) {
  const { left, right, top, bottom } = dialog.getBoundingClientRect();
  return x >= left && x <= right && y >= top && y <= bottom;
}
