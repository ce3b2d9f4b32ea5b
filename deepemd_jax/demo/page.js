// The forms of the page: classes, query, settings, and the request.
// User input is put into the page as text, never as HTML.

import { $, make, showAnswer } from "./result.js";

// The server recognizes further formats by the content of a file.
const FORMATS = "image/*,.heic,.heif,.avif,.jfif,.jp2,.tga,.qoi";
const VARIANTS = {
  fcn: "regions are cells of the feature map",
  grid: "regions are crops on grids",
  sampling: "regions are random crops",
};

let settings; // the answer of GET /settings
let seed = Math.floor(Math.random() * 2 ** 20); // the seed of the next example
let example; // the query of the last example, and the card of its class
let answer; // the answer to the last form

// A card on which the images of a class, or the query, are dropped.
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
    let depth = 0; // children also report that a file is over them
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
        `at most ${mebibytes(limits.file)} are allowed.`);
    } else if (fitting.length > room) {
      this.error(this.most === 1
        ? "Only one query is allowed; the first was used."
        : `At most ${this.most} images per class; the first were used.`);
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

let cards = []; // the cards of the classes
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

// Marks the answer as stale, because the page has changed.
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

// Asks the server; throws an Error with a sentence for the user, and `where`.
async function ask(path, options) {
  let response, content;
  try {
    response = await fetch(path, options);
    content = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. It may have ended, or a " +
      "file has changed since it was chosen.");
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
  return new File([bytes], name);
}

async function loadExample(kind) {
  seed = (seed + 1) % settings.seeds;
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
    addClass(name).add(images.map((x, i) => fileOf(x, `image ${i + 1}`)));
  }
  query.add([fileOf(found.query, "query")]);
  example = { file: query.files[0], card: cards[found.truth] };
}

let working = null; // the AbortController of the current request

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
    showAnswer(answer);
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
      ". The first request with so many classes and images takes longer.");
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
  // Otherwise a file dropped beside a card would replace the page.
  for (const name of ["dragover", "drop"]) {
    window.addEventListener(name, (event) => event.preventDefault());
  }
  startOver(2);
}

start();
