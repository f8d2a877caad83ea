// Completions by OpenAI's SDK for Node. Prints the answers as one JSON object.
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused" });
const request = { model, prompt: "Say this is a test", max_tokens: 7, temperature: 0 };

const whole = await client.completions.create(request);
const chunks = [];
for await (const chunk of await client.completions.create({ ...request, stream: true })) {
  chunks.push(chunk);
}
const scored = await client.completions.create({
  ...request, max_tokens: 0, echo: true, logprobs: 2,
});
let refusal;
try {
  await client.completions.create({ ...request, n: 0 });
} catch (error) {
  refusal = { status: error.status, param: error.param, name: error.constructor.name };
}
const models = (await client.models.list()).data.map((entry) => entry.id);
console.log(JSON.stringify({ whole, chunks, scored, refusal, models }));
