// Vercel's AI SDK over an OpenAI-compatible completion model. Prints the answers as JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const [baseURL, model, prompt] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: "afterword", baseURL, apiKey: "unused", includeUsage: true,
});
const request = {
  model: provider.completionModel(model), prompt, maxOutputTokens: 7, temperature: 0,
};

const whole = await generateText(request);
const stream = streamText(request);
const parts = [];
for await (const part of stream.textStream) parts.push(part);
const biased = await generateText({
  ...request, providerOptions: { afterword: { logitBias: { 28: 100 }, user: "somebody" } },
});
console.log(JSON.stringify({
  text: whole.text, finish: whole.finishReason, usage: whole.usage,
  parts, streamUsage: await stream.usage, biased: biased.text,
}));
