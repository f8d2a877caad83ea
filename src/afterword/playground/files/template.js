/** A text as messages of a chat, and requests in a model's chat template. Knows no page. */

/** What stands between an instruction and its answer. */
export const BREAK = "\n\n";

/**
 * @typedef {{role: "user"|"assistant", content: string, at: number}} Message
 * `at` is the offset of the content in the text
 * @typedef {{body: object, messages: Message[]|null}} Request
 * A body of a completion. With messages its prompt is what the template makes of them.
 */

/**
 * Returns the messages of a text. What the model wrote is an answer, what the reader wrote is an
 * instruction. What the reader writes into the last line of an answer belongs to the answer.
 * @param {{by: "you"|"model", text: string}[]} passages
 * @returns {Message[]} at least one; the first is the reader's
 */
export function messagesOf(passages) {
  const messages = [{ role: "user", content: "", at: 0 }];
  let at = 0;
  const say = (role, content) => {
    const last = messages.at(-1);
    if (last.role === role) last.content += content;
    else if (content !== "") messages.push({ role, content, at });
    at += content.length;
  };
  for (const { by, text } of passages) {
    const { role, content } = messages.at(-1);
    const line = by === "you" && role === "assistant" ? lineOf(content, text) : 0;
    say("assistant", text.slice(0, line));
    say(by === "you" ? "user" : "assistant", text.slice(line));
  }
  return messages.map((message) => (message.role === "user" ? trimmed(message) : message));
}

/** Returns how much of a text belongs to the answer before it: all of it if it begins no line. */
function lineOf(answer, text) {
  const end = answer.endsWith("\n") ? 0 : text.indexOf("\n");
  return end === -1 || text.slice(end).trim() === "" ? text.length : end;
}

function trimmed({ role, content, at }) {
  return { role, content: content.trim(), at: at + content.length - content.trimStart().length };
}

/** Whether the model's message comes next, and has not begun. */
export function asks(messages) {
  return messages.at(-1).role === "user";
}

/**
 * Render messages. Resolves to `{prompt, offsets, stop_token_ids}`: `offsets` are those of the
 * contents in the prompt, in code points, null where the template changes one.
 * @param {import("./api.js").Api} api
 */
export function rendered(api, model, messages, signal = undefined) {
  const said = messages.map(({ role, content }) => ({ role, content: content.toWellFormed() }));
  return api.json("/apply-template", { model, messages: said }, signal);
}

/** Resolves to the body that is sent for a request. @param {Request} request */
export async function bodyOf(api, { body, messages }, signal = undefined) {
  if (messages === null) return body;
  const { prompt, stop_token_ids: ends } = await rendered(api, body.model, messages, signal);
  return { ...body, prompt, ...(ends.length > 0 && { stop_token_ids: ends }) };
}

/**
 * Returns the parts of a prompt, in order: those with `at` are contents of messages and begin there
 * in the text, the others are the template's. `start` is the offset in the prompt.
 * @returns {{start: number, text: string, at: number|null}[]}
 */
export function partsOf({ prompt, offsets }, messages) {
  const points = [...prompt];
  const parts = [];
  let units = 0;
  let done = 0;
  const push = (end, at) => {
    const text = points.slice(done, end).join("");
    if (text !== "") parts.push({ start: units, text, at });
    units += text.length;
    done = end;
  };
  messages.forEach(({ content, at }, i) => {
    const offset = offsets[i];
    if (offset === null) return;
    push(offset, null);
    push(offset + [...content].length, at);
  });
  push(points.length, null);
  return parts;
}

/** Returns the groups of a prompt that lie inside contents, at their places in the text. */
export function groupsInText(groups, parts) {
  return parts.filter(({ at }) => at !== null).flatMap(({ start, text, at }) => groups
    .filter((group) => group.start >= start && group.end <= start + text.length && group.end > group.start)
    .map((group) => ({ ...group, start: group.start - start + at, end: group.end - start + at })));
}
