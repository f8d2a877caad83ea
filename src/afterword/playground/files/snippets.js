/**
 * A request as a program that sends it.
 *
 * All text becomes a literal of the language, so text of the page cannot become code.
 */

const OWN_FIELDS = ["top_k", "min_p", "min_tokens", "ignore_eos", "stop_token_ids"];
const KEY_VARIABLE = "AFTERWORD_API_KEY";

/** @typedef {{base: string, body: Record<string, unknown>, keyed: boolean}} Call */

/** Returns JSON in ASCII, which no terminal or editor changes. */
function ascii(value, indent) {
  return JSON.stringify(value, null, indent).replace(
    /[\u007f-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** @param {Call} call */
export function curl({ base, body, keyed }) {
  // In single quotes a shell changes nothing; only a single quote needs an escape.
  const quoted = ascii(body).replaceAll("'", String.raw`'\''`);
  const lines = [`curl ${word(`${base}/v1/completions`)}`, "-H 'Content-Type: application/json'"];
  if (keyed) lines.push(`-H "Authorization: Bearer $${KEY_VARIABLE}"`);
  lines.push(`-d '${quoted}'`);
  return lines.join(" \\\n  ");
}

/** Returns an address as one word of a shell, some of which expand the brackets of IPv6. */
function word(address) {
  return /^[\w@%+=:,./-]+$/.test(address) ? address : `'${address}'`;
}

/** @param {Call} call */
export function python({ base, body, keyed }) {
  const own = Object.entries(body).filter(([name]) => OWN_FIELDS.includes(name));
  const known = Object.entries(body).filter(([name]) => !OWN_FIELDS.includes(name));
  const key = keyed ? `os.environ["${KEY_VARIABLE}"]` : '"unused"';
  const lines = known.map(([name, value]) => `    ${name}=${pythonValue(value)},`);
  if (own.length > 0) lines.push(`    extra_body=${pythonValue(Object.fromEntries(own))},`);
  return [
    ...(keyed ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${base}/v1", api_key=${key})`,
    "answer = client.completions.create(",
    ...lines,
    ")",
    "print(answer.model_dump_json())",
  ].join("\n");
}

function pythonValue(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (typeof value === "string") return pythonText(value);
  if (typeof value === "number") return String(value);
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  const pairs = Object.entries(value).map(([k, v]) => `${pythonText(k)}: ${pythonValue(v)}`);
  return `{${pairs.join(", ")}}`;
}

/** Returns a Python literal. Its escapes beyond 16 bits differ from JSON's. */
function pythonText(text) {
  const inside = [...text].map((point) => {
    const code = point.codePointAt(0);
    if (point === "\n") return "\\n";
    if (point === '"' || point === "\\") return `\\${point}`;
    if (code >= 0x20 && code < 0x7f) return point;
    if (code > 0xffff) return `\\U${code.toString(16).padStart(8, "0")}`;
    return `\\u${code.toString(16).padStart(4, "0")}`;
  });
  return `"${inside.join("")}"`;
}

/** @param {Call} call */
export function javascript({ base, body, keyed }) {
  const key = keyed ? `\n    Authorization: \`Bearer \${process.env.${KEY_VARIABLE}}\`,` : "";
  const written = ascii(body, 2).replaceAll("\n", "\n  ");
  return [
    `const reply = await fetch("${base}/v1/completions", {`,
    '  method: "POST",',
    `  headers: {\n    "Content-Type": "application/json",${key}\n  },`,
    `  body: JSON.stringify(${written}),`,
    "});",
    "console.log(JSON.stringify(await reply.json()));",
  ].join("\n");
}

export const LANGUAGES = { curl, python, javascript };
