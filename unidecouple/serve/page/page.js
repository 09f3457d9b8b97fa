"use strict";
// The conversation: questions and generated images, one turn at a time, and the actions on each.

const $ = (id) => document.getElementById(id);
const PICTURES = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const EXAMPLES = [["t2i", "a photo of a red cow"], ["t2i", "a photo of two cups"], ["mmu", "Is there a cow in the image?"]];
let turns = [];        // {task, words, picture, answer | pictures, seed}
let attached = null;   // {url, name}
let running = null;    // AbortController of the turn that runs

const task = () => document.querySelector('input[name="task"]:checked').value;
const number = (name) => Number($("options").elements[name].value);
const say = (words) => { $("said").textContent = words; };

// ---- images in

function attach(url, name) {
  attached = { url, name };
  $("thumb").src = url;
  $("attached-name").textContent = name;
  $("attached").hidden = false;
  choose("mmu");
  $("words").focus();
}

function detach() {
  attached = null;
  $("attached").hidden = true;
  $("file").value = "";
}

function take(file) {
  if (!PICTURES.includes(file.type)) {
    complain(`“${file.name}” is no image that can be read here: use PNG, JPEG, WebP or GIF.`);
    return;
  }
  const reader = new FileReader();
  reader.onload = () => attach(reader.result, file.name);
  reader.onerror = () => complain(`“${file.name}” could not be read.`);
  reader.readAsDataURL(file);
}

function choose(which) {
  document.querySelector(`input[name="task"][value="${which}"]`).checked = true;
  $("words").placeholder = which === "mmu" ? "Ask about an image" : "Describe an image to generate";
  $("pick").hidden = which === "t2i";
}

// ---- what has been said

function mine(turn) {
  const item = tag("li", { class: "mine" });
  if (turn.picture) item.append(tag("img", { src: turn.picture, alt: "Your image" }));
  item.append(turn.words);
  $("talk").append(item);
}

function theirs(which) {
  const text = tag("div", { class: "text" }), who = tag("p", { class: "who" }, which === "mmu" ? "Answer" : "Drawing");
  const item = tag("li", { class: `theirs busy ${which}` }, who, text);
  $("talk").append(item);
  item.scrollIntoView({ block: "end" });
  return { item, text, who };
}

function complain(message) {
  $("start").hidden = true;
  const item = tag("li", { class: "theirs wrong", role: "alert" }, tag("p", { class: "who" }, "That did not work"), tag("div", { class: "text" }, message));
  $("talk").append(item);
  item.scrollIntoView({ block: "end" });
}

const act = (words, action) => tag("button", { type: "button", class: "quiet", onclick: action }, words);

// A question goes with the last image and the turns about it since; generated images in between are not part of it.
function conversation(upTo) {
  const asked = turns.slice(0, upTo + 1).filter((turn) => turn.task === "mmu" && (turn.answer !== undefined || turn === turns[upTo]));
  const start = asked.findLastIndex((turn) => turn.picture);
  return asked.slice(Math.max(0, start)).flatMap((turn, i, all) => {
    const words = { type: "text", text: turn.words };
    const content = turn.picture ? [{ type: "image_url", image_url: { url: turn.picture } }, words] : [words];
    const user = { role: "user", content };
    return i === all.length - 1 ? [user] : [user, { role: "assistant", content: turn.answer }];
  });
}

// ---- one turn

async function ask(turn, place, signal) {
  const body = { messages: conversation(turns.indexOf(turn)), max_tokens: number("max_tokens"), temperature: number("temperature"), top_k: number("top_k"), ...seeded() };
  let answer = "";
  const finish = await api.answer(body, (piece) => {
    answer += piece;
    place.text.textContent = answer;
    place.item.scrollIntoView({ block: "end" });
  }, signal);
  turn.answer = answer;
  if (!answer.trim()) place.text.textContent = "(the answer is empty)";
  if (finish === "length") place.who.textContent = "Answer, cut off at its longest";
  place.item.append(tag("div", { class: "acts" }, act("See the conflict", () => look(turn))));
  place.item.scrollIntoView({ block: "end" });
}

async function draw(turn, place, signal) {
  const n = number("n"), started = performance.now();
  const frames = tag("div", { class: n > 1 ? "pictures several" : "pictures" }), shown = [];
  for (let i = 0; i < n; i++) { shown.push(growing(turn, i, n)); frames.append(shown[i].figure); }
  place.item.append(frames);
  place.item.scrollIntoView({ block: "end" });
  const took = () => `${((performance.now() - started) / 1000).toFixed(1)} s`;
  const clock = setInterval(() => {
    const share = shown.reduce((sum, one) => sum + one.share, 0) / n;
    place.who.textContent = `Drawing, ${share ? `${percent(share)}, ` : ""}${took()}`;
  }, 100);
  try {
    const body = { prompt: turn.words, n, ...given("guidance_scale", "guidance_scale"), ...given("temperature", "draw_temperature"), ...given("top_k", "draw_top_k"), ...seeded() };
    const made = await api.draw(body, (i, url, share) => shown[i].grow(url, share), signal);
    turn.pictures = made.map((one) => `data:image/png;base64,${one.b64_json}`);
    turn.tokens = made.map((one) => one.image_tokens);
    turn.seed = made[0].seed;
    frames.replaceChildren(...turn.pictures.map((url, i) => drawn(turn, url, i)));
    place.who.textContent = `Drawing, ${took()}, seed ${turn.seed}`;
    place.item.scrollIntoView({ block: "end" });
  } catch (error) {
    frames.remove();
    throw error;
  } finally {
    clearInterval(clock);
  }
}

// An image that is not there yet: its finished part covers the waiting frame from the top, and a bar says how far it is.
function growing(turn, i, n) {
  const image = tag("img", { alt: `Drawn so far for: ${turn.words}`, hidden: "" });
  const bar = tag("progress", { max: 1, value: 0, "aria-label": n > 1 ? `Image ${i + 1} of ${n}` : "How much is generated" });
  const figure = tag("figure", { class: "growing" }, tag("div", { class: "blank" }), image, bar);
  return {
    figure, share: 0,
    grow(url, share) {
      image.src = url;
      image.hidden = false;
      image.style.clipPath = `inset(0 0 calc(${100 * (1 - share)}% + 2px) 0)`; // where it is enlarged, grey bleeds into the last row
      bar.value = this.share = share;
    },
  };
}

function drawn(turn, url, i) {
  const name = `${turn.words.slice(0, 40).replace(/[^\w]+/g, "-")}-${turn.seed}-${i}.png`;
  const save = tag("a", { class: "quiet", href: url, download: name }, "Save");
  const acts = tag("div", { class: "acts" }, act("See the conflict", () => look(turn, i)), act("Ask about it", () => attach(url, turn.words)), save);
  return tag("figure", {}, tag("img", { src: url, alt: `Drawn for: ${turn.words}` }), acts);
}

// What is left blank is the server's to choose: a seed by chance, the checkpoint's own guidance and temperature.
const given = (key, name) => ($("options").elements[name].value === "" ? {} : { [key]: number(name) });
const seeded = () => given("seed", "seed");

async function send() {
  const words = $("words").value.trim(), which = task();
  if (!words) { say("Write something first."); $("words").focus(); return; }
  if (!$("options").checkValidity()) { settings(true); $("options").reportValidity(); say("A setting is out of its bounds."); return; }
  const turn = { task: which, words, picture: which === "mmu" ? attached?.url : undefined };
  turns.push(turn);
  $("start").hidden = true;
  mine(turn);
  $("words").value = "";
  grow();
  if (which === "mmu") detach();
  const place = theirs(which);
  running = new AbortController();
  $("send").textContent = "Stop";
  say(which === "mmu" ? "Answering" : "Drawing");
  try {
    await (which === "mmu" ? ask : draw)(turn, place, running.signal);
    say(which === "mmu" ? `Answer: ${turn.answer}` : "The image is done.");
  } catch (error) {
    const stopped = error.name === "AbortError";
    turns = turns.filter((one) => one !== turn);
    place.who.textContent = stopped ? "Stopped" : "That did not work";
    if (!stopped) { place.item.classList.add("wrong"); place.item.setAttribute("role", "alert"); place.text.textContent = error.message; $("words").value = words; grow(); }
    say(stopped ? "Stopped" : error.message);
  } finally {
    place.item.classList.remove("busy");
    running = null;
    $("send").textContent = "Send";
  }
}

// ---- inside

const body = (turn, i) => (turn.task === "t2i"
  ? { messages: [{ role: "user", content: turn.words }], drawn: turn.tokens[i] }
  : { messages: conversation(turns.indexOf(turn)), answer: turn.answer });

async function look(turn, i = 0) {
  const place = $("inside-body");
  $("inside-title").textContent = `Inside: “${turn.words.length > 60 ? `${turn.words.slice(0, 59)}…` : turn.words}”`;
  place.replaceChildren(tag("p", {}, "Looking…"));
  $("inside").showModal();
  try {
    const view = await api.routing(body(turn, i));
    const last = turns.findLast((one) => one.task !== turn.task && (one.pictures || one.answer));
    inside.show(place, view, last ? await api.routing(body(last, 0)) : null);
  } catch (error) {
    place.replaceChildren(tag("p", { class: "lead", role: "alert" }, error.message));
  }
}

// ---- the frame around it

function grow() {
  $("words").style.height = "auto";
  $("words").style.height = `${Math.min($("words").scrollHeight, 160)}px`;
}

function settings(shown) {
  $("settings").classList.toggle("shown", shown);
  $("open-settings").setAttribute("aria-expanded", String(shown));
  if (shown) $("options").elements.seed.focus();
}

async function greet() {
  try {
    const { data } = await api.json("/v1/models");
    api.model = data[0].id;
    $("model").textContent = `${api.model} · ${data[0].tasks.join(" and ")}`;
  } catch (error) {
    $("model").textContent = error.message;
    if (error.status === 401) settings(true);
  }
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); running ? running.abort() : send(); });
$("words").addEventListener("input", grow);
$("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); if (!running) send(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("inside").open) return;
  if (running) running.abort();
  else if ($("settings").classList.contains("shown")) { settings(false); $("open-settings").focus(); }
});
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) { event.preventDefault(); take(event.clipboardData.files[0]); } });
let over = 0;
const dragged = (event) => [...event.dataTransfer.types].includes("Files");
window.addEventListener("dragenter", (event) => { if (dragged(event)) { over++; $("drop").hidden = false; } });
window.addEventListener("dragleave", (event) => { if (dragged(event) && --over <= 0) { over = 0; $("drop").hidden = true; } });
window.addEventListener("dragover", (event) => event.preventDefault());
window.addEventListener("drop", (event) => {
  event.preventDefault();
  over = 0;
  $("drop").hidden = true;
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
});
$("file").addEventListener("change", () => { if ($("file").files.length) take($("file").files[0]); });
$("detach").addEventListener("click", detach);
document.querySelectorAll('input[name="task"]').forEach((input) => input.addEventListener("change", () => choose(input.value)));
$("options").addEventListener("submit", (event) => event.preventDefault());
$("options").elements.key.addEventListener("change", (event) => { api.key = event.target.value; greet(); });
$("options").addEventListener("reset", () => { api.key = ""; });
$("open-settings").addEventListener("click", () => settings(!$("settings").classList.contains("shown")));
$("close-inside").addEventListener("click", () => $("inside").close());
$("fresh").addEventListener("click", () => {
  running?.abort();
  turns = [];
  detach();
  $("talk").replaceChildren();
  $("start").hidden = false;
  $("words").focus();
});
for (const [which, words] of EXAMPLES) {
  $("examples").append(tag("li", {}, act(which === "mmu" ? words : `Draw ${words}`, () => { choose(which); $("words").value = words; grow(); $("words").focus(); })));
}
choose("mmu");
greet();
