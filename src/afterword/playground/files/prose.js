/** What kind of text a text is, for its font; and texts as Markdown. */

const LOOKED_AT = 4000;
const LEAST_SHARE = 0.35;
const CODE_LINE = new RegExp([
  String.raw`[;{}]\s*$`,
  String.raw`^\s*(?:def|class|import|from|return|if|for|while|fn|func|function|const|let|var|#include|public|private|package|use|struct|enum|async|await|try|except|elif|else|print)\b.*[:;{()=<"']`,
  String.raw`^\s*(?:import|from|package|use)\s+[\w.:]+\s*;?$`,
  String.raw`^\s{2,}\S.*[=(){}[\];]`,
  String.raw`^\s*(?://|#!|/\*|<\/?\w+[^>]*>\s*$)`,
  String.raw`^\s*return\b`,
].join("|"));

/** Whether the beginning of a text looks like a program. */
export function isCode(text) {
  const lines = text.slice(0, LOOKED_AT).split("\n").filter((line) => line.trim() !== "");
  if (lines.length < 2) return false;
  return lines.filter((line) => CODE_LINE.test(line)).length >= lines.length * LEAST_SHARE;
}

/** Returns text that Markdown shows as it is. */
export function escaped(text) {
  return text
    .replace(/[\\`*_[\]<>|~]/g, (mark) => `\\${mark}`)
    .replace(/^(\s*)([#+-]|\d+[.)])(?=\s|$)/gm, (_, space, mark) => `${space}${
      mark.length > 1 ? `${mark.slice(0, -1)}\\${mark.slice(-1)}` : `\\${mark}`}`);
}

/**
 * Returns passages as Markdown, what the reader wrote in bold.
 * @param {string} title
 * @param {{by: "you"|"model", text: string}[]} passages
 */
export function markdown(title, passages) {
  const body = passages.map(({ by, text }) => (by === "you" ? bold(text) : escaped(text))).join("");
  return `# ${escaped(title.replace(/\s+/g, " "))}\n\n${body.trim()}\n`;
}

/** Bold must not begin or end with white space, nor run over lines. */
function bold(text) {
  return text.split("\n").map((line) => {
    const [, before, words, after] = /^(\s*)(.*?)(\s*)$/s.exec(line);
    return words === "" ? line : `${before}**${escaped(words)}**${after}`;
  }).join("\n");
}
