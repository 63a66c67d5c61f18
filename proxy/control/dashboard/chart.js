// Drawn as SVG: a line over the last minutes with the switches marked, and dots for requests that waited.

import { h } from "./dom.js";

const HEIGHT = 140, LEFT = 46, BOTTOM = 18, TOP = 8;

// Drawn as wide as it is shown, so that its text has the size of text.
function room() {
  const all = document.getElementById("main").clientWidth - 80;
  return Math.max(240, all > 620 ? Math.min(600, all / 2) : all);
}

function nice(top) {
  const size = 10 ** Math.floor(Math.log10(top || 1));
  return [1, 2, 5, 10].map((one) => one * size).find((one) => one >= top) ?? top;
}

const LETTER = 6.3;

// Where the texts of marks stand: near the right edge on the other side of their line, and below one that is in the way.
function placed(marks, width) {
  const taken = [];
  return marks.map((one) => {
    const long = one.text.length * LETTER, isLeft = one.at > width - 90;
    const from = isLeft ? one.at - long - 3 : one.at, to = isLeft ? one.at : one.at + long + 3;
    const rows = taken.filter((other) => from < other.to && other.from < to).map((other) => other.row);
    let row = 0;
    while (rows.includes(row)) row += 1;
    taken.push({ from, to, row });
    return { ...one, row: row % 8, isLeft };
  });
}

// Points are [seconds, value or null].
export function chart(title, unit, points, marks, seconds) {
  const WIDTH = room();
  const now = points.length ? points[points.length - 1][0] : Date.now() / 1000;
  const known = points.filter(([at, value]) => value !== null && at > now - seconds);
  const top = nice(Math.max(1, ...known.map(([, value]) => value)));
  const x = (at) => LEFT + (WIDTH - LEFT - 6) * (1 - (now - at) / seconds);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const line = known.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const newest = known.length ? known[known.length - 1][1] : null;
  const said = newest === null ? "no traffic" : `${newest.toFixed(newest < 10 ? 1 : 0)} ${unit}`;
  const signs = placed(marks.filter((one) => one.at > now - seconds).map((one) => ({ at: x(one.at), text: one.text })), WIDTH);
  const drawing = h("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${said}` },
    [0, 0.5, 1].map((part) => h("line", { class: "grid", x1: LEFT, x2: WIDTH - 6, y1: y(top * part), y2: y(top * part) })),
    [0, 1].map((part) => h("text", { x: LEFT - 6, y: y(top * part) + 4, "text-anchor": "end" }, (top * part).toLocaleString("en"))),
    known.length > 1 ? h("polygon", { class: "area", points: `${x(known[0][0])},${y(0)} ${line} ${x(known[known.length - 1][0])},${y(0)}` }) : null,
    h("polyline", { class: "line", points: line }),
    signs.map(({ at, text, row, isLeft }) => h("g", {},
      h("line", { class: "mark", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM }),
      h("text", { class: "mark-text", x: isLeft ? at - 3 : at + 3, y: TOP + 9 + row * 12, "text-anchor": isLeft ? "end" : null }, text))),
    h("text", { x: LEFT, y: HEIGHT - 4 }, `${Math.round(seconds / 60)} min ago`),
    h("text", { x: WIDTH - 6, y: HEIGHT - 4, "text-anchor": "end" }, "now"));
  return h("figure", {}, h("figcaption", {}, h("span", {}, title), h("strong", {}, said)), drawing);
}

const COLUMNS = 48;

// One dot for each wait, in columns of equal width; dots of a column stand on each other, closer the more there are.
export function dots(waitsUs) {
  const WIDTH = room(), longest = Math.max(...waitsUs) / 1000, top = nice(longest);
  const columns = Array.from({ length: COLUMNS }, () => 0);
  const places = waitsUs.map((one) => {
    const column = Math.min(COLUMNS - 1, Math.floor((one / 1000 / top) * COLUMNS));
    return [column, columns[column]++];
  });
  const step = (WIDTH - 20) / COLUMNS, size = Math.min(4, step / 2 - 0.5);
  const rise = Math.min(2 * size + 1, (HEIGHT - TOP - BOTTOM - 2 * size) / Math.max(1, Math.max(...columns) - 1));
  const x = (ms) => 10 + (WIDTH - 20) * (ms / top), ground = HEIGHT - BOTTOM;
  return h("svg", { class: "chart dots", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${waitsUs.length} requests waited, the longest ${longest.toFixed(1)} ms` },
    h("line", { class: "grid", x1: 10, x2: WIDTH - 10, y1: ground, y2: ground }),
    places.map(([column, row]) => h("circle", { cx: (10 + step * (column + 0.5)).toFixed(1), cy: (ground - size - 1 - row * rise).toFixed(1), r: size.toFixed(1) })),
    [0, 0.5, 1].map((part) => h("text", { x: x(top * part), y: HEIGHT - 4, "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle" }, `${(top * part).toLocaleString("en")} ms`)));
}
