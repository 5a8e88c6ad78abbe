// OpenAI's npm client against the server: node client.mjs URL KEY QUESTION, prints one line of JSON.
import OpenAI from "openai";

const [url, apiKey, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const asked = { model: "gemma", messages: [{ role: "user", content: question }], max_tokens: 8 };

const plain = await client.chat.completions.create({ ...asked, logprobs: true }).withResponse();
const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
const chunks = [];
for await (const chunk of stream) chunks.push(chunk);
const models = [];
for await (const model of client.models.list()) models.push(model.id);

const failure = async (asking) => {
  try {
    await asking();
  } catch (error) {
    return [error.constructor.name, error.status, error.code];
  }
  return "none";
};
const errors = [
  await failure(() => new OpenAI({ baseURL: `${url}/v1`, apiKey: "lr-wrong", maxRetries: 0 }).models.list()),
  await failure(() => client.chat.completions.create({ ...asked, model: "nobody" })),
  await failure(() => client.chat.completions.create({ ...asked, temperature: 9 })),
];

console.log(
  JSON.stringify({
    plain: plain.data,
    headers: Object.fromEntries([...plain.response.headers].filter(([name]) => name.startsWith("leeroo-"))),
    streamed: chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join(""),
    usage: chunks.at(-1).usage,
    models,
    errors,
  }),
);
