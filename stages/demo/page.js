// A film is decoded by the browser, answered by onnxruntime in WebAssembly, and shown with its class map.
const page = JSON.parse(document.getElementById("page").textContent);
const { about, limits } = page;
const said = document.getElementById("said");
const canvas = document.getElementById("film");
const place = document.getElementById("place");
const SAMPLED = 16384; // pixels that a picture is judged by
const OPACITY = 0.6; // of a map where it is strongest

function say(text, isFault = false) {
  said.textContent = text;
  said.classList.toggle("fault", isFault);
}

// A part of the page: from within this file, or from beside it with its checksum.
async function part(name) {
  const inside = document.querySelector(`script[data-part="${name}"]`);
  if (!inside) return (await fetch(name, { integrity: page.integrity[name] })).arrayBuffer();
  const bytes = Uint8Array.from(atob(inside.textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function load() {
  const script = new Blob([await part(page.script)], { type: "text/javascript" });
  const ort = await import(URL.createObjectURL(script));
  ort.env.wasm.numThreads = 1; // more would need headers that plain servers do not send
  ort.env.wasm.wasmBinary = await part(page.binary);
  const session = await ort.InferenceSession.create(new Uint8Array(await part(page.model)));
  return { ort, session };
}

function refuse(reason) {
  throw new Error(reason);
}

// Upright pixels as they are stored, without a colour profile's changes: grey values and the share that is in colour.
async function decode(blob) {
  const first = new Uint8Array(await blob.slice(0, 26).arrayBuffer());
  const isPng = first[0] === 0x89 && first[1] === 0x50;
  if (!isPng && !(first[0] === 0xff && first[1] === 0xd8)) refuse("neither PNG nor JPEG (cxr-predict reads DICOM)");
  if (isPng && first[24] === 16) refuse("a PNG of 16 bits, whose values a browser cuts: use cxr-predict");
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    refuse("it cannot be decoded: damaged or cut short");
  }
  const { width, height } = bitmap;
  if (width * height > limits.maxPixels) refuse("more pixels than a film has");
  const drawn = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  drawn.drawImage(bitmap, 0, 0);
  const { data } = drawn.getImageData(0, 0, width, height);
  const grey = new Uint8Array(width * height);
  let coloured = 0;
  let isOpaque = true;
  for (let at = 0, from = 0; at < grey.length; at += 1, from += 4) {
    const [red, green, blue] = [data[from], data[from + 1], data[from + 2]];
    isOpaque &&= data[from + 3] === 255;
    if (red === green && green === blue) grey[at] = red;
    else {
      grey[at] = (red * 4899 + green * 9617 + blue * 1868 + 8192) >> 14; // within 1 of OpenCV's
      coloured += Math.max(red, green, blue) - Math.min(red, green, blue) > limits.tint;
    }
  }
  if (!isOpaque) refuse("partly transparent, which a browser mixes into the pixels: use cxr-predict");
  return { grey, width, height, coloured: coloured / grey.length };
}

// What is plainly no chest film, as stages/films/plausibility.py says it.
function requireFilm({ grey, width, height, coloured }) {
  const [short, long] = [Math.min(width, height), Math.max(width, height)];
  if (short < limits.smallestPx) refuse(`${width} x ${height} pixels: the model needs ${limits.smallestPx} a side`);
  if (long > limits.longest * short) refuse(`${width} x ${height} pixels: no film is that long`);
  if (coloured > limits.coloured) refuse("in colour: a film is grey");
  const step = Math.max(1, Math.floor(Math.sqrt(grey.length / SAMPLED)));
  const some = [];
  for (let row = 0; row < height; row += step) {
    for (let column = 0; column < width; column += step) some.push(grey[row * width + column]);
  }
  some.sort((one, other) => one - other);
  const [dark, bright] = [0.001, 0.999].map((share) => some[Math.round(share * (some.length - 1))]);
  if (bright - dark < limits.minRange * 255) refuse("hardly any contrast");
  const white = some.filter((value) => value > bright - limits.nearWhite * (bright - dark)).length;
  if (white > limits.mostly * some.length) refuse("mostly white, like a page of text");
  const bins = new Array(64).fill(0);
  for (const value of some) bins[value >> 2] += 1;
  if (Math.max(...bins) > limits.alike * some.length) refuse("nearly all of one grey, like a drawing or a screenshot");
}

let runtime;
let film = null;
let answer = null;
let finding = 0;
let turn = 0; // of the latest film or finding that was asked for: what an earlier one gives late is not shown

let last = Promise.resolve();
async function run({ grey, width, height }, chosen) {
  const { ort, session } = runtime;
  const feeds = { film: new ort.Tensor("uint8", grey, [height, width]) };
  if (about.map) feeds.finding = new ort.Tensor("int64", BigInt64Array.of(BigInt(chosen)), []);
  last = last.then(() => session.run(feeds)); // a session takes one film at a time
  const found = await last;
  return Object.fromEntries(Object.entries(found).map(([name, { dims, data }]) => [name, { dims, data: [...data] }]));
}

function population() {
  return Number(document.getElementById("population").value);
}

function showRows() {
  const rows = document.getElementById("rows");
  const { threshold, temperature, bias } = about.populations[population()];
  const asked = document.activeElement?.dataset?.finding;
  rows.replaceChildren();
  for (const [at, { title }] of about.findings.entries()) {
    const probability = answer.probabilities.data[population() * about.findings.length + at];
    const from = threshold[at] === null || !Number.isFinite(probability)
      ? null : 1 / (1 + Math.exp(-(threshold[at] / temperature[at] + bias[at])));
    const isCalled = threshold[at] !== null && answer.logits.data[at] >= threshold[at];
    const row = rows.insertRow();
    row.classList.toggle("called", isCalled);
    const head = document.createElement("th");
    head.scope = "row";
    if (about.map) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = title;
      button.dataset.finding = at;
      button.setAttribute("aria-pressed", String(at === finding));
      button.addEventListener("click", () => choose(at));
      head.append(button);
    } else head.textContent = title;
    if (isCalled) head.insertAdjacentHTML("beforeend", " <small>called</small>");
    row.append(head);
    for (const value of [probability, from]) {
      const cell = row.insertCell();
      cell.className = "n";
      cell.textContent = value !== null && Number.isFinite(value) ? value.toFixed(3) : "–";
    }
  }
  if (asked !== undefined) rows.querySelector(`[data-finding="${asked}"]`)?.focus();
}

// A map's cell, bilinear between the cells' centres.
function heatAt(map, row, column, side) {
  const [rows, columns] = map.dims;
  const down = Math.min(Math.max(((row + 0.5) * rows) / side - 0.5, 0), rows - 1);
  const across = Math.min(Math.max(((column + 0.5) * columns) / side - 0.5, 0), columns - 1);
  const [top, left] = [Math.floor(down), Math.floor(across)];
  const [bottom, right] = [Math.min(top + 1, rows - 1), Math.min(left + 1, columns - 1)];
  const at = (y, x) => Math.max(map.data[y * columns + x], 0);
  const [low, high] = [across - left, down - top];
  return (at(top, left) * (1 - low) + at(top, right) * low) * (1 - high)
    + (at(bottom, left) * (1 - low) + at(bottom, right) * low) * high;
}

function showFilm() {
  const side = canvas.width;
  const context = canvas.getContext("2d");
  const square = Math.min(film.width, film.height);
  const [left, top] = [Math.floor((film.width - square) / 2), Math.floor((film.height - square) / 2)];
  const picture = context.createImageData(side, side);
  const map = about.map && document.getElementById("map").checked ? answer.map : null;
  const peak = map ? Math.max(...map.data) : 0;
  for (let row = 0; row < side; row += 1) {
    for (let column = 0; column < side; column += 1) {
      const y = top + Math.floor(((row + 0.5) * square) / side);
      const x = left + Math.floor(((column + 0.5) * square) / side);
      const grey = film.grey[y * film.width + x];
      const heat = peak > 0 ? heatAt(map, row, column, side) / peak : 0;
      const to = (row * side + column) * 4;
      const colour = [255, 200 * heat, 40]; // from red to yellow
      for (let channel = 0; channel < 3; channel += 1) {
        picture.data[to + channel] = grey * (1 - OPACITY * heat) + colour[channel] * OPACITY * heat;
      }
      picture.data[to + 3] = 255;
    }
  }
  context.putImageData(picture, 0, 0);
  const { title } = about.findings[finding];
  canvas.setAttribute("aria-label", map ? `The film, with the class map of ${title}` : "The film");
  if (about.map) document.getElementById("mapped").textContent = title;
}

// The finding that is furthest above its threshold.
function foremost({ logits }) {
  const above = about.populations[population()].threshold.map((from, at) => (from === null ? -Infinity : logits.data[at] - from));
  return Math.max(above.indexOf(Math.max(...above)), 0);
}

function show(read, found, at) {
  [film, answer, finding] = [read, found, at];
  showRows();
  showFilm();
  document.getElementById("answer").hidden = false;
}

async function choose(at) {
  const mine = (turn += 1);
  const found = await run(film, at);
  if (mine === turn) show(film, found, at);
}

async function take(blob, name) {
  const mine = (turn += 1);
  document.getElementById("answer").hidden = true;
  say(`Reading ${name} …`);
  try {
    const read = { ...(await decode(blob)), name };
    requireFilm(read);
    const start = performance.now();
    const first = await run(read, 0);
    const at = foremost(first);
    const found = at === 0 ? first : await run(read, at);
    if (mine !== turn) return;
    show(read, found, at);
    say(`${name}: ${read.width} x ${read.height} pixels, answered in ${Math.round(performance.now() - start)} ms`);
  } catch (error) {
    if (mine === turn) say(`${name} is not answered: ${error.message}`, true);
  }
}

document.getElementById("file").addEventListener("change", ({ target }) => {
  if (target.files.length) take(target.files[0], target.files[0].name);
  target.value = ""; // the same film may be chosen again
});
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", async () => take(new Blob([await part(button.dataset.sample)]), button.dataset.sample));
}
place.addEventListener("dragover", (event) => {
  event.preventDefault();
  place.classList.add("over");
});
place.addEventListener("dragleave", () => place.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  place.classList.remove("over");
  const [dropped] = event.dataTransfer.files;
  if (dropped && runtime) take(dropped, dropped.name);
});
addEventListener("dragover", (event) => event.preventDefault());
document.getElementById("population").addEventListener("change", showRows);
document.getElementById("map")?.addEventListener("change", showFilm);
document.getElementById("save").addEventListener("click", () => {
  const told = {
    film: film.name,
    model: page.sha256,
    population: about.populations[population()],
    populations: about.populations.map(({ name }) => name),
    findings: about.findings.map(({ name }) => name),
    finding: about.findings[finding].name,
    ...answer,
  };
  const link = document.createElement("a");
  const text = JSON.stringify(told, (_, value) => (typeof value === "number" && !Number.isFinite(value) ? null : value));
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `${film.name}.json`;
  link.click();
});

try {
  runtime = await load();
  for (const control of document.querySelectorAll("[disabled]")) control.disabled = false;
  say("Ready.");
} catch (error) {
  const isFile = location.protocol === "file:" && !document.querySelector("script[data-part]");
  say(isFile ? "From disk, open one_file.html: a browser loads nothing beside a page that it has from disk." : `Not loaded: ${error.message}`, true);
}
