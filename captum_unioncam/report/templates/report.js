// The page's parts that are chosen: a class, and an image with the maps of all methods.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function add(parent, tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

// Names of metrics keep their arrows beside them.
const unbroken = (heading) => heading.replace(/ (?=[↑↓]$)/, "\u00a0");

function showTable(of) {
  const table = byId("class-table");
  table.replaceChildren();
  if (!of) return;
  const head = add(add(table, "thead"), "tr");
  for (const heading of of.headings) add(head, "th", unbroken(heading), {scope: "col"});
  const body = add(table, "tbody");
  for (const [method, ...cells] of of.rows) {
    const row = add(body, "tr");
    add(row, "th", method, {scope: "row"});
    for (const [mean, interval, best] of cells) {
      const cell = add(row, "td");
      add(cell, best ? "strong" : "span", mean);
      if (interval) add(cell, "small", interval);
    }
  }
}

// One image explained for one class.
const explained = data.images.flatMap((image) => [...new Set(image.maps.map((map) => map.target))].map((target) => {
  const maps = image.maps.filter((map) => map.target === target);
  return {image, target, name: maps[0].name, maps};
}));
let listed = [];

function drawMap(canvas, map, overPhoto) {
  const values = Uint8Array.from(atob(map), (character) => character.charCodeAt(0));
  const pixels = new ImageData(data.side, data.side);
  const low = Math.min(...values), range = Math.max(...values) - low || 1;
  values.forEach((value, i) => {
    const at = 4 * Math.round(255 * (value - low) / range);
    pixels.data.set(data.colors.slice(at, at + 4), 4 * i);
    if (!overPhoto) pixels.data[4 * i + 3] = 255;
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function showMap(gallery, photo, map) {
  const figure = add(gallery, "figure");
  if (map.map) {
    const stack = add(figure, "div", "", {class: "stack", role: "img", "aria-label": `The map of ${map.method}`});
    if (photo) add(stack, "img", "", {src: photo, alt: "", class: "under"});
    const canvas = add(stack, "canvas", "", {width: data.side, height: data.side, class: photo ? "over" : "alone"});
    drawMap(canvas, map.map, Boolean(photo));
  }
  const caption = add(figure, "figcaption");
  add(caption, "strong", map.method);
  add(caption, "div", map.error ? `failed: ${map.error}` : map.numbers.join(", "));
}

function showImage() {
  const gallery = byId("image-maps"), at = byId("image").selectedIndex, one = listed[at];
  gallery.replaceChildren();
  byId("previous").disabled = at <= 0;
  byId("next").disabled = at >= listed.length - 1;
  byId("image-text").textContent = one ? "" : "None of these images shows the class.";
  if (!one) return;
  if (one.image.photo) {
    const figure = add(gallery, "figure");
    add(figure, "img", "", {src: one.image.photo, alt: `The photo ${one.image.name}`});
    const known = one.maps.find((map) => map.confidence);
    const caption = add(figure, "figcaption");
    add(caption, "strong", one.name);
    add(caption, "div", known ? `confidence ${known.confidence}` : "");
  }
  for (const map of one.maps) showMap(gallery, one.image.photo, map);
}

function showClass() {
  const chosen = byId("class").value;
  const isShown = (target) => chosen === "" || String(target) === chosen;
  showTable(data.classes.find((one) => String(one.target) === chosen));
  listed = explained.filter((one) => isShown(one.target));
  byId("image").replaceChildren();
  for (const one of listed) add(byId("image"), "option", `${one.image.name}: ${one.name}`);
  for (const figure of document.querySelectorAll("figure[data-target]")) {
    figure.hidden = !isShown(figure.dataset.target);
  }
  for (const heading of document.querySelectorAll("h4")) {
    heading.hidden = !heading.nextElementSibling.querySelector("figure:not([hidden])");
  }
  showImage();
}

function step(by) {
  byId("image").selectedIndex += by;
  showImage();
}

for (const one of data.classes) add(byId("class"), "option", one.name, {value: one.target});
byId("class").addEventListener("change", showClass);
byId("image").addEventListener("change", showImage);
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
showClass();
for (const part of document.querySelectorAll(".scripted")) part.hidden = false;
