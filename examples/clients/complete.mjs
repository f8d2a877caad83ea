// Complete a prompt with fetch, streamed: node complete.mjs
const base = process.env.AFTERWORD_URL ?? "http://127.0.0.1:8000/v1";
const key = process.env.AFTERWORD_KEY ?? "unused";
const answer = await fetch(`${base}/completions`, {
  method: "POST",
  headers: { "Content-Type": "application/json", Authorization: `Bearer ${key}` },
  body: JSON.stringify({
    model: process.env.AFTERWORD_MODEL ?? "smollm2-135m-instruct",
    prompt: "Say this is a test",
    max_tokens: 7,
    temperature: 0,
    stream: true,
  }),
});
if (!answer.ok) throw new Error(await answer.text());
let rest = "";
for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + part).split("\n");
  rest = lines.pop();
  for (const line of lines) {
    if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
    const chunk = JSON.parse(line.slice(6));
    if (chunk.error) throw new Error(chunk.error.message);
    process.stdout.write(chunk.choices[0].text);
  }
}
process.stdout.write("\n");
