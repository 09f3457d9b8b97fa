"use strict";
// "See the conflict": one request's tokens by layers, coloured by group, and how much each layer looks at the other modality.

const inside = {};
const TASKS = { mmu: "understanding", t2i: "generation" };
const LABEL_HEIGHT = 118, ROW = 24, STRIP = 10;

const groupName = (view, group) => TASKS[view.groups[group]] ?? { all: "the one group" }[view.groups[group]] ?? view.groups[group];
const percent = (share) => `${Math.round(100 * share)}%`;

function svg(name, attributes = {}, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function tag(name, attributes = {}, ...content) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) key.startsWith("on") ? made.addEventListener(key.slice(2), value) : made.setAttribute(key, value);
  made.append(...content);
  return made;
}

inside.show = function (body, view, other) {
  body.replaceChildren();
  if (view.learned.length) body.append(...routes(view));
  else body.append(tag("p", { class: "lead" }, "This model is dense: every token goes through the same weights in every layer, so nothing is routed. Where its layers look still differs by task: see below."));
  body.append(...curves(view, other, body.clientWidth - 40));
};

// ---- the grid

function routes(view) {
  const place = tag("div", {});
  const readout = tag("p", { id: "readout", "aria-live": "polite" });
  const parts = [tag("p", { class: "lead", id: "verdict" }, verdict(view))];
  if (view.label) {
    const choice = tag("fieldset", { class: "choice", style: "justify-self:start" }, tag("legend", { class: "unseen" }, "Routing shown"));
    for (const [way, words] of [["learned", "By the learned router"], ["label", "By label, as served"]]) {
      const input = tag("input", { type: "radio", name: "way", value: way, onchange: () => grid(place, readout, view, way) });
      input.checked = way === "learned";
      choice.append(tag("label", {}, input, tag("span", {}, words)));
    }
    parts.push(choice);
  }
  grid(place, readout, view, "learned");
  parts.push(place, legend(view), readout);
  return parts;
}

function verdict(view) {
  if (view.groups.length < 2) return "This mixture has one group of experts and no task knowledge: a token’s colour says which expert it went to.";
  if (!view.label) return "This model gets each token’s group as input, so every token is in the group of its label.";
  const shares = view.learned.map((row) => [row.layer, row.group.filter((group, i) => group === view.tokens[i].label).length / row.group.length]);
  const mean = shares.reduce((sum, [, share]) => sum + share, 0) / shares.length;
  const [layer, least] = shares.reduce((a, b) => (b[1] < a[1] ? b : a));
  const tail = least === 1 ? ", in every layer" : least < mean - 0.005 ? `, and layer ${layer} the fewest (${percent(least)})` : ", about alike in all layers";
  return `The learned router sends ${percent(mean)} of this request’s tokens to the group of their label (${groupName(view, view.tokens.at(-1).label)})${tail}.`;
}

function legend(view) {
  const items = view.groups.map((_, group) => tag("span", {}, tag("i", { style: `background:var(--g${group})` }), groupName(view, group)));
  if (Math.max(...view.experts) > 1) items.push(tag("span", {}, "paler: a later expert of the group"));
  if (view.groups.length > 1) items.push(tag("span", {}, tag("i", { class: "out" }), "not in the labelled group"));
  return tag("div", { class: "legend" }, ...items, tag("span", {}, "left to right: tokens in their order; down: layers"));
}

// Widths: words need room for their text, an image's many tokens do not.
function columns(view) {
  const counts = { text: 0 }, edges = [4];
  for (const token of view.tokens) counts[token.kind] = (counts[token.kind] ?? 0) + 1;
  for (const token of view.tokens) {
    const wide = token.kind === "text" ? (counts.text > 40 ? 16 : 22) : counts[token.kind] > 150 ? 3 : counts[token.kind] > 40 ? 7 : 11;
    edges.push(edges.at(-1) + wide);
  }
  return edges;
}

function grid(place, readout, view, way) {
  const rows = view[way], edges = columns(view), bottom = LABEL_HEIGHT + rows.length * ROW;
  const strip = view.groups.length > 1 ? STRIP + 8 : 0;
  const drawing = svg("svg", { width: edges.at(-1) + 40, height: bottom + strip + 6, "aria-hidden": "true" });
  headings(drawing, view, edges);
  rows.forEach((row, r) => row.group.forEach((group, t) => cell(drawing, view, row, t, group, edges, LABEL_HEIGHT + r * ROW)));
  if (strip) view.tokens.forEach((token, t) => drawing.append(svg("rect", { x: edges[t], y: bottom + 6, width: edges[t + 1] - edges[t] - 1, height: STRIP, class: `k${token.label}` })));
  const at = svg("rect", { class: "at", visibility: "hidden", height: ROW - 1, y: 0, x: 0 });
  drawing.append(at);
  const names = tag("div", { class: "names", "aria-hidden": "true" });
  rows.forEach((row, r) => names.append(tag("span", { style: `top:${LABEL_HEIGHT + r * ROW + 2}px` }, `layer ${row.layer}`)));
  if (strip) names.append(tag("span", { style: `top:${bottom + 2}px` }, "label"));
  const label = `${view.tokens.length} tokens by ${rows.length} layers; arrow keys move from cell to cell`;
  const scroll = tag("div", { class: "scroll", tabindex: "0", role: "application", "aria-label": label }, drawing);
  place.replaceChildren(tag("div", { class: "map" }, names, scroll));

  let token = -1, layer = 0;
  const choose = (t, r, follow) => {
    token = Math.max(0, Math.min(view.tokens.length - 1, t));
    layer = Math.max(0, Math.min(rows.length - 1, r));
    at.setAttribute("x", edges[token] - 0.5);
    at.setAttribute("y", LABEL_HEIGHT + layer * ROW - 0.5);
    at.setAttribute("width", edges[token + 1] - edges[token]);
    at.setAttribute("visibility", "visible");
    readout.textContent = describe(view, rows[layer], token);
    if (follow) scroll.scrollLeft = Math.max(0, edges[token] - scroll.clientWidth / 2);
  };
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top - LABEL_HEIGHT;
    if (x >= edges[0] && x < edges.at(-1)) choose(edges.findLastIndex((edge) => edge <= x), Math.floor(y / ROW), false);
  });
  scroll.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-1e9, 0], End: [1e9, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(token + step[0], layer + step[1], true);
  });
  readout.textContent = "Point at a cell, or move with the arrow keys, to read it.";
}

function cell(drawing, view, row, t, group, edges, y) {
  const width = edges[t + 1] - edges[t], size = view.experts[group] ?? 1;
  const expert = row.expert ? row.expert[t] - view.experts.slice(0, group).reduce((a, b) => a + b, 0) : 0;
  const opacity = size > 1 ? 1 - (0.58 * expert) / (size - 1) : 1;
  drawing.append(svg("rect", { x: edges[t], y, width: width - 1, height: ROW - 2, class: `k${group}`, "fill-opacity": opacity.toFixed(2) }));
  if (view.groups.length < 2 || group === view.tokens[t].label) return;
  const side = Math.min(7, width - 1);
  drawing.append(svg("rect", { x: edges[t] + (width - 1 - side) / 2, y: y + (ROW - 2 - side) / 2, width: side, height: side, class: "odd" }));
}

function headings(drawing, view, edges) {
  for (let t = 0; t < view.tokens.length; ) {
    const { kind, text } = view.tokens[t];
    let end = t + 1;
    if (kind !== "text") {
      while (end < view.tokens.length && view.tokens[end].kind === kind) end++;
      const [from, to] = [edges[t], edges[end] - 1], y = LABEL_HEIGHT - 7;
      drawing.append(svg("path", { class: "bracket", d: `M${from} ${y + 4}v-4H${to}v4` }));
      drawing.append(svg("text", { class: "run", x: from, y: y - 20 }, `image ${kind},`), svg("text", { class: "run", x: from, y: y - 6 }, `${end - t} tokens`));
    } else {
      const x = (edges[t] + edges[t + 1]) / 2 + 3.5, y = LABEL_HEIGHT - 7, short = text.trim().length > 14 ? `${text.trim().slice(0, 13)}…` : text.trim() || "␣";
      drawing.append(svg("text", { transform: `translate(${x} ${y}) rotate(-90)` }, short));
    }
    t = end;
  }
}

function describe(view, row, t) {
  const token = view.tokens[t], place = view.tokens.slice(0, t).filter((one) => one.kind === token.kind).length;
  const what = token.kind === "text" ? `“${token.text}”` : `token ${place + 1} of the image ${token.kind}`;
  const group = row.group[t], words = [`Token ${t + 1}, ${what}, layer ${row.layer}: to ${groupName(view, group)}`];
  if (row.sure && view.groups.length > 1) words.push(`(the task router gives its first choice ${percent(row.sure[t])})`);
  if (row.expert) words.push(`expert ${row.expert[t]}, with ${percent(row.probability[t])} of its group’s probability`);
  if (view.groups.length > 1) words.push(group === token.label ? "the group of its label" : `its label: ${groupName(view, token.label)}`);
  return `${words[0]}${words.slice(1).map((one) => (one.startsWith("(") ? ` ${one}` : `, ${one}`)).join("")}.`;
}

// ---- the curves

function curves(view, other, room) {
  const shown = [view, other].filter((one) => one?.interaction);
  if (!shown.length) return [tag("p", { class: "fine" }, "There is no curve: the request has one modality only.")];
  const r = shown.length === 2 ? correlation(shown[0].interaction, shown[1].interaction) : null;
  const reading = "How much of its attention each layer gives to the other modality: an answer to the image, a generated image to its prompt. ";
  const end = shown.length < 2
    ? `Do the other task in this conversation, too, and its curve appears beside this one.`
    : r === null
      ? "Where one curve is high and the other low, the tasks ask different things of the same layer."
      : `The two curves’ correlation over layers is ${r.toFixed(2).replace("-", "−")}: ${meaning(r)}. Two requests and few layers are a glimpse, not a measurement.`;
  return [tag("h3", {}, "Where each layer looks"), chart(shown, room), tag("p", { class: "fine" }, reading + end)];
}

const meaning = (r) => (r < -0.3 ? "below zero, so layers that attend across modalities for one task tend not to for the other"
  : r > 0.3 ? "above zero, so the same layers attend across modalities for both tasks" : "about zero, so the tasks’ layers of cross-modal attention are unrelated");

function chart(shown, room) {
  const layers = shown[0].interaction.length, most = Math.max(...shown.flatMap((one) => one.interaction), 0.05);
  const top = Math.ceil(most * 10) / 10, left = 44, width = Math.max(300, Math.min(560, room)), right = width - 108, high = 14, low = 170;
  const x = (layer) => left + ((right - left) * layer) / Math.max(1, layers - 1), y = (share) => low - ((low - high) * share) / top;
  const names = shown.map((one) => `${TASKS[one.task]} ${one.interaction.map(percent).join(", ")}`).join("; ");
  const drawing = svg("svg", { class: "chart", width, height: 212, viewBox: `0 0 ${width} 212`, role: "img", "aria-label": `Attention to the other modality by layer: ${names}` });
  for (const share of [0, top / 2, top]) {
    drawing.append(svg("line", { class: "axis", x1: left, x2: right, y1: y(share), y2: y(share) }), svg("text", { x: left - 8, y: y(share) + 4, "text-anchor": "end" }, percent(share)));
  }
  for (let layer = 0; layer < layers; layer += Math.max(1, Math.ceil(layers / 12))) drawing.append(svg("text", { x: x(layer), y: low + 18, "text-anchor": "middle" }, layer));
  drawing.append(svg("text", { x: (left + right) / 2, y: low + 34, "text-anchor": "middle" }, "layer"));
  const ends = shown.map((one) => y(one.interaction.at(-1)) + 4);
  if (ends.length === 2 && Math.abs(ends[0] - ends[1]) < 16) {
    const up = ends[0] <= ends[1] ? 0 : 1, middle = (ends[0] + ends[1]) / 2;
    [ends[up], ends[1 - up]] = [middle - 8, middle + 8];
  }
  shown.forEach((one, i) => {
    drawing.append(svg("polyline", { class: one.task, points: one.interaction.map((share, layer) => `${x(layer)},${y(share)}`).join(" ") }));
    one.interaction.forEach((share, layer) => drawing.append(svg("circle", { class: one.task, cx: x(layer), cy: y(share), r: 3 })));
    drawing.append(svg("text", { class: one.task, x: right + 10, y: ends[i] }, TASKS[one.task]));
  });
  return drawing;
}

function correlation(a, b) {
  if (a.length < 3 || a.length !== b.length) return null;
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length, [ma, mb] = [mean(a), mean(b)];
  let ab = 0, aa = 0, bb = 0;
  a.forEach((value, i) => { ab += (value - ma) * (b[i] - mb); aa += (value - ma) ** 2; bb += (b[i] - mb) ** 2; });
  return aa * bb < 1e-12 ? null : ab / Math.sqrt(aa * bb);
}
