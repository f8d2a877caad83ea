// Continue's adapters: completions whole and streamed, and fill-in-the-middle. Prints JSON.
import { constructLlmApi } from "@continuedev/openai-adapters";

const [apiBase, model, coder, prompt, suffix, provider] = process.argv.slice(2);
const signal = new AbortController().signal;
const api = constructLlmApi({ provider, apiBase: `${apiBase}/`, apiKey: "unused" });
const request = { model, prompt, max_tokens: 7, temperature: 0 };

const whole = await api.completionNonStream({ ...request, stream: false }, signal);
const parts = [];
for await (const chunk of api.completionStream({ ...request, stream: true }, signal)) {
  parts.push(chunk.choices[0].text);
}
const infill = [];
const fim = { model: coder, prompt, suffix, max_tokens: 6, temperature: 0, stop: ["```"] };
for await (const chunk of api.fimStream({ ...fim, stream: true }, signal)) {
  infill.push(chunk.choices[0].delta.content ?? "");
}
const models = (await api.list()).map((entry) => entry.id);
console.log(JSON.stringify({ text: whole.choices[0].text, parts, infill, models }));
process.exit(0);
