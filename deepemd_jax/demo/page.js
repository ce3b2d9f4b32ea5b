"use strict";
// Whatever a person gives is put into the page as text, never as HTML.

const FORMATS = ".bmp,.gif,.jpeg,.jpg,.png,.tif,.tiff,.webp";
const SHOWN = 8; // lines in the picture
const ROWS = 10; // of the table, until all are asked for
const VARIANTS = {
  fcn: "regions are cells of the feature map",
  grid: "regions are crops on grids",
  sampling: "regions are random crops",
};
const VIRIDIS = [
  [68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37],
];

const $ = (id) => document.getElementById(id);

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function draw(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  element.append(...children);
  return element;
}

let settings; // what GET /settings says
let example; // its query, and the card of the class that this shows
let answer; // to the last form

// A class, or the query: a card that images are dropped on.
class Card {
  constructor(name) {
    this.files = [];
    this.list = make("ul", { className: "thumbs" });
    this.message = make("p", { className: "error" });
    this.message.setAttribute("role", "alert");
    this.choose = make("input", { type: "file", accept: FORMATS });
    this.root = make("div", { className: "card" });
    if (name === undefined) {
      this.most = 1;
      this.root.classList.add("query");
    } else {
      this.most = settings.limits.images;
      this.choose.multiple = true;
      this.name = make("input", { type: "text", value: name });
      this.name.maxLength = settings.limits.name;
      this.name.setAttribute("aria-label", "Name of the class");
      this.name.oninput = () => changed(this);
      const remove = button("×", "Remove this class", () => removeClass(this));
      this.root.append(make("div", { className: "name" }, this.name, remove));
    }
    this.prompt = make("span");
    const drop = make("label", { className: "drop" }, this.choose, this.prompt);
    this.root.append(this.list, drop, this.message);
    this.choose.onchange = () => {
      this.add([...this.choose.files]);
      this.choose.value = "";
    };
    let depth = 0; // children report, too, that a file is over them
    this.root.ondragenter = () => this.root.classList.toggle("over", ++depth);
    this.root.ondragleave = () => {
      this.root.classList.toggle("over", --depth > 0);
    };
    this.root.ondrop = (event) => {
      depth = 0;
      this.root.classList.remove("over");
      const { items, files } = event.dataTransfer;
      if ([...items].some((item) => item.webkitGetAsEntry()?.isDirectory)) {
        this.error("Drop images, not a folder.");
      } else this.add([...files]);
    };
    this.show();
  }

  add(files) {
    if (!files.length) return;
    const limits = settings.limits;
    const large = files.filter((file) => file.size > limits.file);
    const fitting = files.filter((file) => file.size <= limits.file);
    changed(this);
    if (this.most === 1 && fitting.length) this.files = [];
    const room = this.most - this.files.length;
    this.files.push(...fitting.slice(0, room));
    if (large.length) {
      const [file] = large;
      this.error(`“${file.name}” has ${mebibytes(file.size)} MiB; ` +
        `at most ${mebibytes(limits.file)} are taken.`);
    } else if (fitting.length > room) {
      this.error(this.most === 1 ? "One query at a time; the first was taken."
        : `At most ${this.most} images a class; the first were taken.`);
    }
    this.show();
  }

  error(text, image) {
    this.message.textContent = text;
    this.root.classList.toggle("bad", text !== "");
    [...this.list.children].forEach((item, i) => {
      item.classList.toggle("bad", i === image);
    });
  }

  show() {
    for (const image of this.list.querySelectorAll("img")) {
      URL.revokeObjectURL(image.src);
    }
    this.list.replaceChildren(...this.files.map((file, i) => {
      const image = make("img", { alt: file.name, title: file.name });
      // Browsers cannot show all that the server can read.
      image.onerror = () => image.replaceWith(
        make("span", { className: "file", textContent: file.name }));
      image.src = URL.createObjectURL(file);
      const remove = button("×", `Remove ${file.name}`, () => {
        this.files.splice(i, 1);
        changed(this);
        this.show();
        this.choose.focus();
      });
      return make("li", {}, image, remove);
    }));
    this.list.hidden = !this.files.length;
    this.prompt.textContent = this.most > 1 ? "Drop images here, or choose"
      : this.files.length ? "Drop another image here, or choose"
        : "Drop an image here, or choose";
  }
}

let cards = []; // of the classes
let query;

function button(text, label, action) {
  const made = make("button", { type: "button", className: "remove" }, text);
  made.setAttribute("aria-label", label);
  made.title = label;
  made.onclick = action;
  return made;
}

function mebibytes(bytes) {
  return +(bytes / 2 ** 20).toFixed(1);
}

// The answer is not to what is on the page any more.
function changed(card) {
  card?.error("");
  $("error").textContent = "";
  if (answer) $("stale").hidden = false;
}

function freeName() {
  const taken = new Set(cards.map((card) => card.name.value));
  let number = 1;
  while (taken.has(`class ${number}`)) number++;
  return `class ${number}`;
}

function addClass(name) {
  const card = new Card(name);
  cards.push(card);
  $("classes").append(card.root);
  $("add").disabled = cards.length >= settings.limits.classes;
  return card;
}

function removeClass(card) {
  cards = cards.filter((other) => other !== card);
  card.root.remove();
  $("add").disabled = false;
  $("add").focus();
  changed();
}

function startOver(count) {
  cards = [];
  $("classes").replaceChildren();
  query = new Card();
  $("query").querySelector(".card")?.remove();
  $("query").append(query.root);
  for (let k = 0; k < count; k++) addClass(freeName());
  changed();
}

// Asks the server; throws an Error with a sentence for the person, and `where`.
async function ask(path, options) {
  let response, content;
  try {
    response = await fetch(path, options);
    content = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; does it still run in its " +
      "terminal? Or a file has changed since it was chosen.");
  }
  if (!response.ok) {
    const error = new Error(sentence(content.error));
    error.where = content.where;
    throw error;
  }
  return content;
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1) + ".";
}

function fileOf(base64, name) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new File([bytes], name, { type: "image/png" });
}

async function loadExample(kind) {
  const seed = Math.floor(Math.random() * 2 ** 32);
  $("example-error").textContent = "";
  let found;
  try {
    found = await ask(`example?kind=${kind}&seed=${seed}`);
  } catch (error) {
    $("example-error").textContent = error.message;
    return;
  }
  startOver(0);
  for (const { name, images } of found.classes) {
    addClass(name).add(images.map((x, i) => fileOf(x, `${i + 1}.png`)));
  }
  query.add([fileOf(found.query, "query.png")]);
  example = { file: query.files[0], card: cards[found.truth] };
}

let working = null; // what cancels the request under way

async function classify() {
  const form = new FormData();
  cards.forEach((card, k) => {
    card.error("");
    form.append("name", card.name.value);
    for (const file of card.files) form.append(`support${k}`, file);
  });
  query.error("");
  for (const file of query.files) form.append("query", file);
  form.append("variant", $("variant").value);
  form.append("solver", $("solver").value);
  const asked = [...cards];
  const known = example && example.file === query.files[0];
  const truth = known ? cards.indexOf(example.card) : -1;
  busy(new AbortController());
  try {
    const options = { method: "POST", body: form, signal: working.signal };
    answer = await ask("classify", options);
    answer.truth = truth;
    showAnswer();
  } catch (error) {
    if (error.name === "AbortError") $("status").textContent = "Canceled.";
    else showError(error, asked);
  }
  busy(null);
}

let clock;

function busy(controller) {
  working = controller;
  clearInterval(clock);
  $("cancel").hidden = !controller;
  $("classify").disabled = !!controller;
  $("working").hidden = !controller;
  if (!controller) return;
  $("error").textContent = $("status").textContent = "";
  const began = Date.now();
  const tick = () => {
    const seconds = Math.round((Date.now() - began) / 1000);
    $("elapsed").textContent = `${seconds} s` + (seconds < 3 ? "" :
      ". The first time with so many classes and images takes longer.");
  };
  tick();
  clock = setInterval(tick, 500);
}

function showError(error, asked) {
  const where = error.where ?? {};
  const card = where.query ? query : asked[where.class];
  if (!card) {
    $("error").textContent = error.message;
    return;
  }
  card.error(error.message, where.query ? 0 : where.image);
  $("error").textContent = "Not classified; see the message at " +
    (where.query ? "the query." : `class ${where.class + 1}.`);
  card.root.scrollIntoView({ block: "nearest" });
}

function showAnswer() {
  const best = answer.classes[answer.predicted];
  const verdict = [make("b", {}, best.name), `, ${percent(best.probability)}`];
  const truth = answer.classes[answer.truth];
  if (truth) {
    verdict.push(make("span", { className: truth === best ? "right" : "wrong" },
      truth === best ? ": right" : `: wrong, it is ${truth.name}`));
  }
  $("verdict").replaceChildren(...verdict);
  const rows = answer.classes.map((found, k) => {
    const choose = make("input", { type: "radio", name: "shown" });
    choose.checked = k === answer.predicted;
    choose.onchange = () => showMatch(k);
    const bar = make("span", { className: "bar" });
    bar.style.width = `${100 * found.probability}%`;
    return make("label", { className: "score" }, choose,
      make("b", {}, found.name), make("span", { className: "track" }, bar),
      make("span", { className: "n" }, percent(found.probability)),
      make("span", { className: "n quiet" }, `logit ${number(found.logit)}`));
  });
  $("scores").replaceChildren($("scores").querySelector("legend"), ...rows);
  $("facts").textContent = Object.entries(answer.facts)
    .map(([name, value]) => `${name}: ${value}`).join(" · ");
  $("stale").hidden = true;
  $("result").hidden = false;
  showMatch(answer.predicted);
  $("result").focus({ preventScroll: true });
  $("result").scrollIntoView({ block: "start" });
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const number = (value) => value.toFixed(2).replace("-", "−");

function color(cosine) {
  const place = Math.min(Math.max((cosine + 0.2) / 1.2, 0), 1) * 4;
  const low = Math.min(Math.floor(place), 3);
  const mixed = VIRIDIS[low].map((value, i) =>
    Math.round(value + (place - low) * (VIRIDIS[low + 1][i] - value)));
  return `rgb(${mixed})`;
}

// Where a match's images stand: above as they are, below under their weights,
// on the left the class's, on the right the query.
function placed(match) {
  const [side, gap, text] = [400, 200, 34];
  const scale = ({ width, height }) => side / Math.max(width, height);
  const [left, right] = [match.support, match.query];
  const [a, b] = [scale(left), scale(right)];
  const height = Math.max(left.height * a, right.height * b);
  const below = text + height + 20;
  const at = (shown, scale, x, y) => ({
    ...shown, scale, y: y + (height - shown.height * scale) / 2,
    x: x + (side - shown.width * scale) / 2,
  });
  const column = side + gap;
  return {
    width: column + side, height: below + height,
    above: [at(left, a, 0, text), at(right, b, column, text)],
    below: [at(left, a, 0, below), at(right, b, column, below)],
  };
}

function rectangle([left, top, right, bottom], { scale, x, y }, kind) {
  return draw("rect", {
    x: x + left * scale, y: y + top * scale, width: (right - left) * scale,
    height: (bottom - top) * scale, class: kind,
  });
}

function picture(href, { width, height, scale, x, y }) {
  return draw("image", { href, x, y, width: width * scale,
    height: height * scale, preserveAspectRatio: "none" });
}

function line(pair, place, largest) {
  const center = ([left, top, right, bottom], { scale, x, y }) =>
    `${x + scale * (left + right) / 2} ${y + scale * (top + bottom) / 2}`;
  const d = `M${center(pair.support_box, place.below[0])} ` +
    `L${center(pair.query_box, place.below[1])}`;
  const width = 2 + 7 * pair.flow / largest;
  return draw("g", {},
    ...[["#fff", width + 3], [color(pair.similarity), width]].map(
      ([stroke, width]) => draw("path",
        { d, class: "flow", stroke, "stroke-width": width })));
}

function frames(pairs, key, place) {
  const boxes = new Map(pairs.map((pair) => [pair[key].join(), pair[key]]));
  return [...boxes.values()].map((box) => rectangle(box, place, "cell"));
}

function showMatch(k) {
  const match = answer.classes[k];
  const place = placed(match);
  const largest = Math.max(...match.pairs.map((pair) => pair.flow));
  const lit = draw("g", { class: "lit" });
  const captions = place.above.map(({ x, width, scale }, side) => draw("text",
    { x: x + width * scale / 2, y: 24, "text-anchor": "middle" },
    side ? "the query" : "of the class"));
  $("match").replaceChildren(draw("svg", {
    viewBox: `0 0 ${place.width} ${place.height}`, role: "img",
    "aria-label": "An image of the class and the query; below, both under " +
      "their weights, joined by the pairs of regions that contribute most. " +
      "The table lists them",
  },
  ...captions,
  picture(match.support.picture, place.above[0]),
  picture(answer.query, place.above[1]),
  picture(match.support.weighted, place.below[0]),
  picture(match.query.weighted, place.below[1]),
  ...frames(match.pairs, "support_box", place.below[0]),
  ...frames(match.pairs, "query_box", place.below[1]),
  ...match.pairs.slice(0, SHOWN).map((pair) => line(pair, place, largest)),
  lit));
  // Few pixels, enlarged, are to stay pixels.
  const side = Math.max(match.support.width, match.query.width);
  $("result").classList.toggle("small", side <= 128);
  $("matched").textContent = match.name;
  $("fitted").textContent = match.images === 1 ? "" : "The class has several " +
    "images, to which its regions are fitted; they stand here on the one " +
    "most like the query" + (answer.facts.variant.startsWith("sampling") ?
    ", loosely, since random crops lie elsewhere in each." : ".");
  showTable(match, ROWS, (pair) => lit.replaceChildren(...(pair ? [
    line(pair, place, largest),
    ...[place.above, place.below].flatMap(([left, right]) => [
      rectangle(pair.support_box, left, ""),
      rectangle(pair.query_box, right, "")]),
  ] : [])));
}

function showTable(match, count, light) {
  const top = Math.max(...match.pairs.map((pair) => pair.contribution), 1e-9);
  const rows = match.pairs.slice(0, count).map((pair) => {
    const bar = make("span", { className: "bar" });
    bar.style.width = `${Math.max(0, 100 * pair.contribution / top)}%`;
    const row = make("tr", { tabIndex: 0 },
      region(match.support, match.support.picture, pair.support_box),
      region(match.query, answer.query, pair.query_box),
      cell(number(pair.similarity)), cell(pair.flow.toFixed(3)),
      cell(number(pair.contribution)), make("td", {}, bar));
    row.onmouseenter = row.onfocus = () => light(pair);
    row.onmouseleave = row.onblur = () => light(null);
    return row;
  });
  $("pairs").replaceChildren(...rows);
  const rest = match.pairs.slice(count);
  const sum = rest.reduce((total, pair) => total + pair.contribution, 0);
  const sums = [];
  if (rest.length) sums.push([`${rest.length} other pairs`, sum]);
  if (Math.abs(match.remainder) >= 0.005) {
    sums.push(["in no pair: the solver smooths", match.remainder]);
  }
  sums.push([`sum: the logit of ${match.name}`, match.logit]);
  $("sums").replaceChildren(...sums.map(([text, value]) =>
    make("tr", {}, make("td", { colSpan: 4 }, text),
      cell(number(value)), make("td"))));
  $("all").hidden = !rest.length;
  $("all").textContent = `Show all ${match.pairs.length} pairs`;
  $("all").onclick = () => {
    showTable(match, match.pairs.length, light);
    $("pairs").children[count].focus();
  };
}

function cell(number) {
  return make("td", { className: "n" }, number);
}

// A region alone, cut out of its image.
function region({ width, height }, href, [left, top, right, bottom]) {
  const viewBox = `${left} ${top} ${right - left} ${bottom - top}`;
  const svg = draw("svg", { viewBox, "aria-hidden": true },
    draw("image", { href, width, height, preserveAspectRatio: "none" }));
  const scale = 44 / Math.max(right - left, bottom - top);
  svg.style.width = `${scale * (right - left)}px`;
  svg.style.height = `${scale * (bottom - top)}px`;
  return make("td", {}, svg);
}

function choices(select, names, own) {
  select.replaceChildren(...names.map((name) => new Option(
    name.replace("_", " ") + (name === own ? " (the run's own)" : ""), name)));
  select.value = own;
}

async function start() {
  try {
    settings = await ask("settings");
  } catch (error) {
    $("error").textContent = error.message;
    return;
  }
  $("encoder").textContent = `Encoder: ${settings.encoder}`;
  choices($("variant"), settings.variants, settings.variant);
  choices($("solver"), settings.solvers, settings.solver);
  const explain = () => {
    $("variant-help").textContent = VARIANTS[$("variant").value];
  };
  explain();
  $("variant").onchange = () => { explain(); changed(); };
  $("solver").onchange = () => changed();
  for (const [kind, text] of Object.entries(settings.examples)) {
    const load = make("button", { type: "button" }, text);
    load.onclick = () => loadExample(kind);
    $("examples").append(load, " ");
  }
  $("add").onclick = () => { changed(); addClass(freeName()).name.select(); };
  $("clear").onclick = () => startOver(2);
  $("classify").onclick = classify;
  $("cancel").onclick = () => working?.abort();
  // A file dropped beside a card would replace the page.
  for (const name of ["dragover", "drop"]) {
    window.addEventListener(name, (event) => event.preventDefault());
  }
  startOver(2);
}

start();
