/** Elements made in code. Nothing here parses HTML: strings become text nodes. */

/** An element with properties (`class`, `on…`, attributes) and children; strings become text. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    // In ARIA, false is a value; elsewhere it means that the attribute is absent.
    if (value === false && !name.startsWith("aria-")) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function find(selector) {
  const element = document.querySelector(selector);
  if (element === null) throw new Error(`the page has no ${selector}`);
  return element;
}

/** Set the text of an element if it is another one: the same text again would cost a layout. */
export function write(selector, text) {
  const element = find(selector);
  if (element.textContent !== text) element.textContent = text;
}

/** Clear a canvas at the screen's resolution. Returns its pen, and its size in CSS pixels. */
export function cleared(canvas) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  return { pen, width, height };
}

/** Returns a random identifier. Works without a secure context. */
export function freshId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Returns a function that calls `run` once, `delay_ms` after its last call. */
export function settled(delay_ms, run) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(run, delay_ms, ...given);
  };
}

/** Returns a function that calls `run` once before the next frame. */
export function eachFrame(run) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      run();
    });
  };
}
