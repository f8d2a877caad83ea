/** Excerpts of texts, which cut no character in half. */

/** Returns the first units of a text, at most so many, without half of a character at the end. */
export function beginning(text, most) {
  const half = (text.charCodeAt(most - 1) & 0xfc00) === 0xd800;
  return text.slice(0, half ? most - 1 : most);
}

/** Returns the last units of a text, at most so many, without half of a character at the start. */
export function ending(text, most) {
  const first = Math.max(0, text.length - most);
  const half = (text.charCodeAt(first) & 0xfc00) === 0xdc00;
  return text.slice(half ? first + 1 : first);
}
