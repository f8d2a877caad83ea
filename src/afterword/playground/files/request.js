/** Settings, and requests made from them. Knows the API's fields and defaults, not the page. */

/**
 * Every numeric field. `page` is the default of the page, `api` the default of the server. A field
 * that is empty or at the server's default is not sent.
 */
export const FIELDS = [
  { name: "temperature", min: 0, max: 2, step: 0.05, page: 0.8, api: 1 },
  { name: "top_p", min: 0, max: 1, step: 0.01, page: 1, api: 1 },
  { name: "max_tokens", min: 0, max: 100000, step: 1, page: 48, api: null, whole: true },
  { name: "n", min: 1, max: 128, step: 1, page: 1, api: 1, whole: true, limit: "max_n" },
  { name: "best_of", min: 1, max: 20, step: 1, page: null, api: null, whole: true, limit: "max_best_of" },
  { name: "seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, page: null, api: null, whole: true },
  { name: "presence_penalty", min: -2, max: 2, step: 0.1, page: 0, api: 0 },
  { name: "frequency_penalty", min: -2, max: 2, step: 0.1, page: 0, api: 0 },
  { name: "top_k", min: 0, max: 100000, step: 1, page: 0, api: 0, whole: true },
  { name: "min_p", min: 0, max: 1, step: 0.01, page: 0.05, api: 0 },
  { name: "min_tokens", min: 0, max: 100000, step: 1, page: 0, api: 0, whole: true },
  { name: "logprobs", min: 0, max: 5, step: 1, page: 5, api: null, whole: true, limit: "max_logprobs" },
];

const SEVERAL = 3;

/**
 * @typedef {{model: string, stop: string[], logit_bias: {id: number, text: string, bias: number}[],
 *   ignore_eos: boolean, infill: boolean, chat_template: boolean, [name: string]: unknown}} Settings
 */

/** @returns {Settings} the defaults of the page */
export function defaults() {
  const numbers = Object.fromEntries(FIELDS.map((field) => [field.name, field.page]));
  return { model: "", ...numbers, stop: [], logit_bias: [], ignore_eos: false, infill: false, chat_template: false };
}

/** Returns the range of a field under the operator's limits. */
export function rangeOf(field, limits = {}) {
  const most = field.limit === undefined ? undefined : limits[field.limit];
  return { min: field.min, max: typeof most === "number" ? most : field.max };
}

/**
 * Parse the settings of a link or of an earlier visit. A value of the wrong type or range becomes
 * the default.
 */
export function readSettings(raw, base = defaults()) {
  const settings = { ...base };
  const given = raw !== null && typeof raw === "object" ? raw : {};
  for (const field of FIELDS) {
    const value = given[field.name];
    if (value === null && field.page === null) settings[field.name] = null;
    if (typeof value === "number" && accepts(field, value, { min: field.min, max: Infinity })) {
      settings[field.name] = value;
    }
  }
  if (typeof given.model === "string" && given.model.length <= 200) settings.model = given.model;
  if (Array.isArray(given.stop)) {
    settings.stop = given.stop.filter((s) => typeof s === "string" && s !== "").slice(0, 64);
  }
  if (Array.isArray(given.logit_bias)) settings.logit_bias = given.logit_bias.filter(isBias);
  for (const name of ["ignore_eos", "infill", "chat_template"]) {
    if (typeof given[name] === "boolean") settings[name] = given[name];
  }
  return settings;
}

function isBias(entry) {
  return Number.isSafeInteger(entry?.id) && entry.id >= 0 && typeof entry.text === "string"
    && typeof entry.bias === "number" && Math.abs(entry.bias) <= 100;
}

/** Whether a number can be sent for a field. */
export function accepts(field, value, range = rangeOf(field)) {
  const kind = field.whole === true ? Number.isSafeInteger(value) : Number.isFinite(value);
  return kind && value >= range.min && value <= range.max;
}

/** Lower the number of alternatives to what the operator allows. Returns true if it changed. */
export function fit(settings, limits) {
  const { max } = rangeOf(fieldOf("logprobs"), limits);
  if (settings.logprobs === null || settings.logprobs <= max) return false;
  settings.logprobs = max;
  return true;
}

/**
 * Returns what keeps the settings from being sent: the name of a field, with the key and the values
 * of a message.
 * @returns {{name: string, key: string, values: object}[]}
 */
export function problems(settings, limits = {}) {
  const found = [];
  for (const field of FIELDS) {
    const value = settings[field.name];
    const range = rangeOf(field, limits);
    if (value === null || accepts(field, value, range)) continue;
    found.push({ name: field.name, key: field.whole ? "error.whole" : "error.range", values: range });
  }
  const { n, best_of: best, min_tokens: least, max_tokens: most } = settings;
  if (best !== null && best < (n ?? 1)) {
    found.push({ name: "best_of", key: "error.bestOf", values: { n: n ?? 1 } });
  }
  if (most !== null && least > most) {
    found.push({ name: "min_tokens", key: "error.minTokens", values: { most } });
  }
  return found;
}

/** Returns the field of a name. */
export function fieldOf(name) {
  return FIELDS.find((field) => field.name === name);
}

/**
 * Returns the request body that continues `text`, without `stream`. An empty suffix asks for no
 * infill.
 * @param {Settings} settings
 */
export function completionBody(settings, text, suffix) {
  const body = { model: settings.model, prompt: text };
  if (suffix !== "") body.suffix = suffix;
  for (const field of FIELDS) {
    const value = settings[field.name];
    if (value === null || value === undefined) continue;
    // The temperature is always sent, so that a copied request shows it.
    if (value === field.api && field.name !== "temperature") continue;
    body[field.name] = value;
  }
  if (settings.stop.length > 0) body.stop = [...settings.stop];
  if (settings.logit_bias.length > 0) {
    body.logit_bias = Object.fromEntries(settings.logit_bias.map(({ id, bias }) => [id, bias]));
  }
  if (settings.ignore_eos) body.ignore_eos = true;
  return body;
}

/** Returns how many versions the reader gets who asks for several. */
export function severalOf({ n }) {
  return (n ?? 1) > 1 ? n : SEVERAL;
}

/** Whether an answer can be streamed. Ranked candidates cannot. */
export function canStream(body) {
  return (body.best_of ?? 1) <= (body.n ?? 1);
}

/** Returns the request body that scores a text and generates nothing. */
export function scoringBody(settings, text) {
  return { model: settings.model, prompt: text, max_tokens: 0, echo: true, logprobs: settings.logprobs ?? 0 };
}
