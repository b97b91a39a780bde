// OpenAI's package for Node against a running platform: INKSTONE_URL and INKSTONE_KEY name it.

import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI, { toFile } from "openai";

const PROMPT = "a 3d cat on a blue background";
const OURS = { steps: 6, seed: 7 };
const PNG = Buffer.from("\x89PNG\r\n\x1a\n", "latin1");

const client = new OpenAI({
  baseURL: `${process.env.INKSTONE_URL}/v1`,
  apiKey: process.env.INKSTONE_KEY,
  maxRetries: 0,
});

const bytes = (base64) => Buffer.from(base64, "base64");

test("a picture is generated, and the same seed gives the same bytes", async () => {
  const draw = () => client.images.generate({ model: "inkstone-demo", prompt: PROMPT, size: "128x128", ...OURS });
  const [first, second] = [await draw(), await draw()];
  assert.equal(first.data.length, 1);
  assert.deepEqual(bytes(first.data[0].b64_json).subarray(0, 8), PNG);
  assert.equal(first.data[0].b64_json, second.data[0].b64_json);
  assert.equal(first.size, "128x128");
});

test("a url is served without a key", async () => {
  const answer = await client.images.generate({ prompt: PROMPT, response_format: "url", n: 2, ...OURS });
  assert.equal(answer.data.length, 2);
  for (const item of answer.data) {
    const served = await fetch(item.url);
    assert.equal(served.headers.get("content-type"), "image/png");
    assert.deepEqual(Buffer.from(await served.arrayBuffer()).subarray(0, 8), PNG);
  }
});

test("a picture is drawn from a picture", async () => {
  const drawn = await client.images.generate({ prompt: PROMPT, ...OURS });
  const image = await toFile(bytes(drawn.data[0].b64_json), "cat.png", { type: "image/png" });
  const edited = await client.images.edit({ image, prompt: "a 3d dog", strength: 0.8, ...OURS });
  assert.deepEqual(bytes(edited.data[0].b64_json).subarray(0, 8), PNG);
  assert.notEqual(edited.data[0].b64_json, drawn.data[0].b64_json);
});

test("an edit is streamed, and its last event is the picture", async () => {
  const drawn = await client.images.generate({ prompt: PROMPT, ...OURS });
  const image = () => toFile(bytes(drawn.data[0].b64_json), "cat.png", { type: "image/png" });
  const request = { prompt: "a 3d dog", strength: 0.9, steps: 30, seed: 7 };
  const events = [];
  for await (const event of await client.images.edit({
    image: [await image()],
    stream: true,
    partial_images: 2,
    ...request,
  })) {
    events.push(event);
  }
  const last = events.pop();
  assert.ok(events.length >= 1 && events.every((event) => event.type === "image_edit.partial_image"));
  assert.equal(last.type, "image_edit.completed");
  const whole = await client.images.edit({ image: await image(), ...request });
  assert.equal(last.b64_json, whole.data[0].b64_json);
});

test("partial images are streamed and the last event is the picture", async () => {
  const request = { prompt: PROMPT, steps: 30, seed: 7 };
  const events = [];
  for await (const event of await client.images.generate({ ...request, stream: true, partial_images: 2 })) {
    events.push(event);
  }
  const last = events.pop();
  assert.ok(events.length >= 1 && events.every((event) => event.type === "image_generation.partial_image"));
  assert.equal(last.type, "image_generation.completed");
  const whole = await client.images.generate(request);
  assert.equal(last.b64_json, whole.data[0].b64_json);
});

test("models are listed", async () => {
  const names = [];
  for await (const model of client.models.list()) {
    names.push(model.id);
  }
  assert.ok(names.includes("inkstone-demo"));
});

test("bad input throws the package's own errors and names the parameter", async () => {
  const refused = (change) => client.images.generate({ prompt: PROMPT, ...change });
  await assert.rejects(refused({ size: "100x100" }), { name: "Error", status: 400, param: "size" });
  await assert.rejects(refused({ prompt: "" }), (error) => error instanceof OpenAI.BadRequestError && error.param === "prompt");
  await assert.rejects(refused({ model: "dall-e-9" }), (error) => error instanceof OpenAI.NotFoundError);
});

test("a wrong key is an authentication error", async () => {
  const stranger = new OpenAI({ baseURL: client.baseURL, apiKey: "ink_dev-0000000000_nonsense", maxRetries: 0 });
  await assert.rejects(
    stranger.images.generate({ prompt: PROMPT }),
    (error) => error instanceof OpenAI.AuthenticationError,
  );
});
