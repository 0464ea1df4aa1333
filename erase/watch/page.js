"use strict";
// Asks for the numbers every few seconds and draws them; all text is set as text.
const EVERY = 3000, WIDTH = 320, HEIGHT = 170, LEFT = 48, RIGHT = 8, TOP = 8, BOTTOM = 22;
const at = (id) => document.getElementById(id);
// Small numbers in powers of ten: a chart's margin has room for seven characters.
const short = (value) => {
  const [number, power] = value.toExponential(2).split("e").map(Number);
  return value && power < -3 ? `${number}e${power}` : Number(value.toPrecision(3)).toString();
};
let run = 0, shownSamples = "", ended = false;

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  return element;
}

function html(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// A centred moving average over a twentieth of the points.
function smoothed(points) {
  const half = Math.max(1, Math.floor(points.length / 40));
  return points.map(([step], i) => {
    const part = points.slice(Math.max(0, i - half), i + half + 1);
    return [step, part.reduce((sum, each) => sum + each[1], 0) / part.length];
  });
}

function chart({ name, last, points }) {
  const values = points.map((each) => each[1]);
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  const first = points[0][0], length = points[points.length - 1][0] - first || 1;
  const x = (step) => LEFT + ((step - first) / length) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / span) * (HEIGHT - TOP - BOTTOM);
  const line = (each) => each.map(([s, v]) => `${x(s).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
  const end = points[points.length - 1][0], means = smoothed(points);
  const label = `Line chart: ${name} over iterations ${first} to ${end}; its moving average begins at ` +
    `${short(means[0][1])} and is now ${short(means[means.length - 1][1])}.`;
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const value of high === low ? [low] : [low, (low + high) / 2, high]) {
    picture.append(
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    );
  }
  picture.append(
    svg("text", { x: LEFT, y: HEIGHT - 6 }, first),
    svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, `iteration ${end}`),
    svg("polyline", { class: "raw", points: line(points) }),
    svg("polyline", { class: "mean", points: line(means) }),
  );
  const now = html("span", { className: "last", textContent: ` ${short(last)}` });
  return html("div", {}, html("h3", { textContent: name }, now), picture);
}

function samples(state) {
  return state.samples.map(({ step, numbers }) => {
    const pictures = numbers.map((number) => {
      const what = number ? "another thing" : state.concept || "the concept";
      const image = html("img", { src: `samples/${run}/${step}/${number}.png`, alt: `${what}, after ${step} iterations` });
      // Small pictures are enlarged without smoothing.
      image.onload = () => image.classList.toggle("pixels", image.naturalWidth <= 128);
      return image;
    });
    const caption = html("figcaption", { textContent: step ? `after ${step} iterations` : "before training" });
    return html("figure", {}, html("div", { className: "pair" }, ...pictures), caption);
  });
}

function time(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function status({ step, total, seconds }) {
  if (!step) return "Preparing: no iteration is done yet.";
  const of = total ? ` of ${total}` : "";
  const left = total && seconds && step < total ? `, ${short(seconds)} s each, about ${time((total - step) * seconds)} left` : "";
  const after = step === total ? " Training is done; its evaluation, if there is one, follows." : "";
  return `Iteration ${step}${of}${left}.${after}`;
}

function best({ best: found, adapter }) {
  if (!found) return "No checkpoint yet.";
  const end = adapter === "best" ? "The best one becomes the adapter." : "The last one becomes the adapter.";
  return `Best checkpoint so far: iteration ${found.step}, with a mean weighted loss of ${short(found.loss)} since the one before. ${end}`;
}

function show(state) {
  const title = state.concept ? `Erasing “${state.concept}”` : "Training in view";
  document.title = at("title").textContent = title;
  // Equal texts stay, so that screen readers do not repeat them.
  for (const [id, text] of [["status", status(state)], ["best", best(state)]]) {
    if (at(id).textContent !== text) at(id).textContent = text;
  }
  at("progress").value = state.total ? state.step / state.total : 0;
  at("charts").replaceChildren(...state.charts.map(chart));
  const now = JSON.stringify([run, state.concept, state.samples]);
  if (now !== shownSamples) {
    at("samples").replaceChildren(...samples(state));
    shownSamples = now;
  }
  if (state.runs.length > 1 && !at("run").options.length) {
    at("run").append(...state.runs.map((name, value) => new Option(name, value)));
    at("choice").hidden = false;
  }
}

async function refresh() {
  const asked = run;
  try {
    const answer = await fetch(`state/${asked}.json`);
    if (!answer.ok) throw new Error(answer.statusText);
    const state = await answer.json();
    if (asked === run) show(state);
    ended = false;
  } catch {
    if (!ended) at("status").textContent += " The command has ended, or this page lost it.";
    ended = true;
  }
}

at("run").onchange = (event) => {
  run = Number(event.target.value);
  refresh();
};
setInterval(() => document.hidden || refresh(), EVERY);
document.onvisibilitychange = () => document.hidden || refresh();
refresh();
