"use strict";
// The server's own API, in OpenAI's form. Whatever goes wrong becomes an Error with words for people.

const api = { key: "", model: "" };

api.open = async function (path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (api.key) headers.Authorization = `Bearer ${api.key}`;
  let response;
  try {
    response = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no words came with it */ }
  if (response.status === 401) message = "This server asks for an API key: put it into the settings.";
  const error = new Error(message[0].toUpperCase() + message.slice(1));
  error.status = response.status;
  throw error;
};

api.json = async (path, body, signal) => (await api.open(path, body, signal)).json();

// Server-sent events, each given to `onEvent` until it returns something other than undefined, which is the result.
api.events = async function (path, body, onEvent, signal) {
  const response = await api.open(path, { ...body, model: api.model, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.slice(event.indexOf("data: ") + 6);
      const said = data === "[DONE]" ? null : JSON.parse(data);
      if (said?.error) throw new Error(said.error.message);
      const result = onEvent(said);
      if (result !== undefined) return result;
    }
  }
  throw new Error("The response broke off: the server closed the connection.");
};

// `onWords` gets each piece of an answer; returns why it ended.
api.answer = function (body, onWords, signal) {
  let finish = null;
  return api.events("/v1/chat/completions", body, (chunk) => {
    if (chunk === null) return finish;
    const choice = chunk.choices[0];
    if (choice?.delta.content) onWords(choice.delta.content);
    finish = choice?.finish_reason ?? finish;
  }, signal);
};

// `onPicture` gets each image as it grows: its index, its address, and how much of it is drawn; returns the finished events in order.
api.draw = function (body, onPicture, signal) {
  const partial = 3, done = [];
  return api.events("/v1/images/generations", { ...body, partial_images: partial }, (event) => {
    const whole = event.type === "image_generation.completed";
    onPicture(event.index, `data:image/png;base64,${event.b64_json}`, whole ? 1 : (event.partial_image_index + 1) / (partial + 1));
    if (whole) done[event.index] = event;
    if (done.filter(Boolean).length === body.n) return done;
  }, signal);
};

api.routing = (body, signal) => api.json("/v1/routing", { ...body, model: api.model }, signal);
