/** The commands of the page with their keys: for the keyboard, for tooltips and for the list of keys. */

const IS_MAC = /^Mac|^iP/.test(globalThis.navigator?.platform ?? "");

/**
 * Every key of the page. `key` is KeyboardEvent's, or its `code` where Alt changes the key. `words`
 * names the action in the list of keys.
 * @type {{name: string, words: string, shown: string, key?: string, code?: string, command?: boolean,
 *   alt?: boolean, shift?: boolean}[]}
 */
export const KEYS = [
  { name: "continue", words: "keys.continue", shown: "Ctrl ↵", key: "Enter", command: true },
  { name: "several", words: "keys.several", shown: "Ctrl ⇧ ↵", key: "Enter", command: true, shift: true },
  { name: "stop", words: "keys.stop", shown: "Esc", key: "Escape" },
  { name: "regenerate", words: "keys.regenerate", shown: "Alt R", code: "KeyR", alt: true },
  { name: "back", words: "keys.back", shown: "Alt ←", code: "ArrowLeft", alt: true },
  { name: "next", words: "keys.next", shown: "Alt →", code: "ArrowRight", alt: true },
  { name: "parent", words: "keys.parent", shown: "Alt ↑", code: "ArrowUp", alt: true },
  { name: "gap", words: "keys.gap", shown: "Alt G", code: "KeyG", alt: true },
  { name: "score", words: "keys.score", shown: "Alt S", code: "KeyS", alt: true },
  { name: "map", words: "keys.map", shown: "Alt M", code: "KeyM", alt: true },
  { name: "mark", words: "keys.mark", shown: "Alt B", code: "KeyB", alt: true },
  { name: "undo", words: "keys.undo", shown: "Ctrl Z", key: "z", command: true },
  { name: "redo", words: "keys.redo", shown: "Ctrl ⇧ Z", key: "z", command: true, shift: true },
  { name: "redo", words: "", shown: "", key: "y", command: true },
  { name: "keys", words: "keys.keys", shown: "?", key: "?" },
];
/** Keys that parts of the page handle themselves. */
const OTHERS = [["keys.card", "Alt ↓"], ["keys.take", "Alt 1–9"]];

/** Returns the command of a keyboard event, or undefined. */
export function commandOf(event) {
  const command = event.ctrlKey || event.metaKey;
  return KEYS.find((each) => {
    if ((each.command ?? false) !== command || (each.alt ?? false) !== event.altKey) return false;
    // Some keyboards need Shift for a question mark.
    if (each.key !== "?" && (each.shift ?? false) !== event.shiftKey) return false;
    return each.code === undefined ? each.key.toLowerCase() === event.key.toLowerCase() : each.code === event.code;
  });
}

/** Returns keys as this system writes them. */
export function spelledKeys(shown) {
  return IS_MAC ? shown.replace("Ctrl", "⌘").replace("Alt", "⌥") : shown;
}

/** Returns the key of the words and the keys of every command, for the list. */
export function listed() {
  const own = KEYS.filter((each) => each.words !== "").map(({ words, shown }) => [words, shown]);
  return [...own, ...OTHERS].map(([words, shown]) => [words, spelledKeys(shown)]);
}

/** Returns a tooltip: the words of a key, and the keys of a command. */
export function tooltip(words, name) {
  const found = KEYS.find((each) => each.name === name);
  return found === undefined ? words : `${words} (${spelledKeys(found.shown)})`;
}
