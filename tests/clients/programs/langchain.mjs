// LangChain.js's `OpenAI`: one prompt, a batch, a stream, several choices. Prints JSON.
import { OpenAI } from "@langchain/openai";

const [baseURL, model, prompt] = process.argv.slice(2);
const options = { model, apiKey: "unused", maxTokens: 7, temperature: 0, maxRetries: 0 };
const configuration = { baseURL };
const llm = new OpenAI({ ...options, configuration });
const stream = [];
for await (const part of await llm.stream(prompt)) stream.push(part);
const chosen = await new OpenAI({
  ...options, temperature: 1, n: 2, bestOf: 3, modelKwargs: { seed: 5 }, configuration,
}).generate([prompt]);
const generated = await llm.generate([prompt, "Once"]);
console.log(JSON.stringify({
  one: await llm.invoke(prompt),
  batch: generated.generations.map((row) => row[0].text),
  usage: generated.llmOutput.tokenUsage,
  stream,
  chosen: chosen.generations[0].map((generation) => generation.text),
}));
