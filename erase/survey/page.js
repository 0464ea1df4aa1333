"use strict";
// The questionnaire: order by rater, answers kept in the browser, export as JSON or CSV.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const kept = () => `erase-study-${data.study}-${rater}`;
let rater = 0, order = [], here = 0, answers = {};

// mulberry32, seeded with a text's FNV-1a hash: the same order for a rater in every browser.
function random(text) {
  let state = 2166136261;
  for (const letter of text) state = Math.imul(state ^ letter.codePointAt(0), 16777619) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let value = Math.imul(state ^ (state >>> 15), state | 1);
    value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
    return ((value ^ (value >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(list, next) {
  const out = [...list];
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function begin() {
  const typed = at("rater").value.trim();
  rater = /^\d{1,7}$/.test(typed) ? Number(typed) : 0;
  if (!(rater >= 1 && rater <= 1000000)) { at("said").textContent = "Your number is a whole number from 1 to 1,000,000."; return; }
  at("said").textContent = "";
  order = shuffled(data.trials, random(`${data.seed} ${rater}`)).map((trial) => ({
    ...trial, items: shuffled(trial.items, random(`${data.seed} ${rater} ${trial.id}`)),
  }));
  try { answers = JSON.parse(localStorage.getItem(kept())); } catch { answers = {}; }
  if (typeof answers !== "object" || answers === null || Array.isArray(answers)) { answers = {}; }
  here = Math.max(0, order.findIndex((trial) => !complete(trial)));
  at("start").hidden = true;
  at("trial").hidden = false;
  show();
}

const name = (trial, item, question) => `${trial.id} ${item.id} ${question.key}`;
const fields = (trial) => trial.items.flatMap((item) => trial.questions.map((question) => name(trial, item, question)));
const complete = (trial) => fields(trial).every((field) => answers[field]);

function count() {
  const done = order.filter(complete).length;
  at("progress").max = order.length;
  at("progress").value = done;
  at("count").textContent = `Screen ${here + 1} of ${order.length}, ${done} answered`;
  if (done === order.length) at("said").textContent = "All is answered. Export the answers and send the file.";
}

function scale(trial, item, question, letter) {
  const row = element("div", "", { class: "scale", role: "radiogroup", "aria-label": `${letter}: ${question.title}` });
  for (let value = 1; value <= 5; value++) {
    const label = element("label", "");
    const input = element("input", "", { type: "radio", name: name(trial, item, question), value });
    input.checked = answers[input.name] === value;
    input.addEventListener("change", () => {
      answers[input.name] = value;
      try { localStorage.setItem(kept(), JSON.stringify(answers)); }
      catch { at("said").textContent = "This browser keeps no answers: export before you close the page."; }
      count();
    });
    label.append(input, String(value));
    row.append(label);
  }
  return row;
}

function show() {
  const trial = order[here];
  at("prompt").textContent = trial.prompt ? `Prompt: ${trial.prompt}` : "A check";
  const items = element("div", "", { class: "items" });
  trial.items.forEach((item, index) => {
    const letter = String.fromCharCode(65 + index);
    const box = element("fieldset", "");
    box.append(element("legend", trial.prompt ? letter : "Check"));
    const pictures = element("div", "", { class: "pictures" });
    item.pictures.forEach((source, number) => pictures.append(element("img", "", {
      src: source, alt: `Picture ${item.pictures.length > 1 ? number + 1 : ""} of ${letter}`.replace("  ", " "),
    })));
    box.append(pictures);
    for (const question of trial.questions) {
      box.append(element("strong", question.title), element("p", question.text, { class: "soft" }), scale(trial, item, question, letter));
    }
    items.append(box);
  });
  at("form").replaceChildren(items);
  at("back").disabled = here === 0;
  at("next").disabled = here === order.length - 1;
  at("prompt").focus();
  window.scrollTo(0, 0);
  count();
}

function move(by) {
  const to = here + by;
  if (to < 0 || to >= order.length) return;
  here = to;
  show();
}

function rate(value) {
  const rows = [...document.querySelectorAll(".scale")];
  const marked = rows.find((row) => row.contains(document.activeElement)) ?? rows.find((row) => !row.querySelector(":checked")) ?? rows[0];
  marked.querySelector(`[value="${value}"]`).click();
  (rows[rows.indexOf(marked) + 1] ?? marked).querySelector("input").focus();
}

function save(text, kind, ending) {
  const link = element("a", "", { href: URL.createObjectURL(new Blob([text], { type: kind })), download: `answers-${rater}.${ending}` });
  link.click();
  URL.revokeObjectURL(link.href);
  at("said").textContent = `Saved answers-${rater}.${ending}: send it to the person who asked you.`;
}

function rows() {
  return Object.entries(answers).map(([field, rating]) => {
    const [trial, item, question] = field.split(" ");
    return { trial, item, question, rating };
  });
}

at("begin").addEventListener("click", begin);
at("rater").addEventListener("keydown", (event) => { if (event.key === "Enter") begin(); });
at("back").addEventListener("click", () => move(-1));
at("next").addEventListener("click", () => move(1));
at("form").addEventListener("submit", (event) => event.preventDefault());
document.querySelector(".json").addEventListener("click", () => save(JSON.stringify({ study: data.study, rater, answers: rows() }), "application/json", "json"));
document.querySelector(".csv").addEventListener("click", () => save(["study,rater,trial,item,question,rating",
  ...rows().map((row) => [data.study, rater, row.trial, row.item, row.question, row.rating].join(","))].join("\r\n") + "\r\n", "text/csv", "csv"));
document.addEventListener("keydown", (event) => {
  if (at("trial").hidden || event.ctrlKey || event.metaKey) return;
  if (event.altKey) {
    if (event.key === "ArrowRight") { event.preventDefault(); move(1); }
    if (event.key === "ArrowLeft") { event.preventDefault(); move(-1); }
  } else if (/^[1-5]$/.test(event.key)) { event.preventDefault(); rate(event.key); }
});
