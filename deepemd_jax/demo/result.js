// Shows how the query was matched: scores, pictures, and the sum of pairs.
// User input is put into the page as text, never as HTML.

const SHOWN = 8; // number of lines in the picture
const ROWS = 10; // number of table rows before the user asks for all
const VIRIDIS = [
  [68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37],
];

export const $ = (id) => document.getElementById(id);

export function make(name, properties = {}, ...children) {
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

let answer; // the answer that is shown

// Shows the answer of POST /classify, with `truth`, the number of the true class
// or -1.
export function showAnswer(newAnswer) {
  answer = newAnswer;
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

// Returns the places of a match's images. The upper images are unchanged, and the
// lower ones are darkened by their weights. The class is left of the query.
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
    side ? "the query" : "from the class"));
  $("match").replaceChildren(draw("svg", {
    viewBox: `0 0 ${place.width} ${place.height}`, role: "img",
    "aria-label": "An image of the class and the query; below, both darkened " +
      "where their weights are small. Lines join the pairs of regions that " +
      "contribute most. The table lists the pairs",
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
  // Small images are enlarged without smoothing.
  const side = Math.max(match.support.width, match.query.width);
  $("result").classList.toggle("small", side <= 128);
  $("matched").textContent = match.name;
  $("fitted").textContent = match.images === 1 ? "" : "The class has several " +
    "images, and its regions are fitted to all of them. They are shown on " +
    "the image that is most similar to the query" +
    (answer.facts.variant.startsWith("sampling") ?
    ", at approximate places, because crops are random." : ".");
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
    sums.push(["not in a pair, because the solver smooths", match.remainder]);
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

// Returns a table cell with one region, cut out of its image.
function region({ width, height }, href, [left, top, right, bottom]) {
  const viewBox = `${left} ${top} ${right - left} ${bottom - top}`;
  const svg = draw("svg", { viewBox, "aria-hidden": true },
    draw("image", { href, width, height, preserveAspectRatio: "none" }));
  const scale = 44 / Math.max(right - left, bottom - top);
  svg.style.width = `${scale * (right - left)}px`;
  svg.style.height = `${scale * (bottom - top)}px`;
  return make("td", {}, svg);
}
