// A line over the last minutes, drawn as SVG; switches are marked. Points are [seconds, value or null].

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
  const drawing = h("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${said}` },
    [0, 0.5, 1].map((part) => h("line", { class: "grid", x1: LEFT, x2: WIDTH - 6, y1: y(top * part), y2: y(top * part) })),
    [0, 1].map((part) => h("text", { x: LEFT - 6, y: y(top * part) + 4, "text-anchor": "end" }, (top * part).toLocaleString("en"))),
    known.length > 1 ? h("polygon", { class: "area", points: `${x(known[0][0])},${y(0)} ${line} ${x(known[known.length - 1][0])},${y(0)}` }) : null,
    h("polyline", { class: "line", points: line }),
    marks.filter((one) => one.at > now - seconds).map((one) => h("g", {},
      h("line", { class: "mark", x1: x(one.at), x2: x(one.at), y1: TOP, y2: HEIGHT - BOTTOM }),
      // Near the right edge the text stands on the other side of its line.
      h("text", x(one.at) > WIDTH - 90 ? { class: "mark-text", x: x(one.at) - 3, y: TOP + 9, "text-anchor": "end" } : { class: "mark-text", x: x(one.at) + 3, y: TOP + 9 }, one.text))),
    h("text", { x: LEFT, y: HEIGHT - 4 }, `${Math.round(seconds / 60)} min ago`),
    h("text", { x: WIDTH - 6, y: HEIGHT - 4, "text-anchor": "end" }, "now"));
  return h("figure", {}, h("figcaption", {}, h("span", {}, title), h("strong", {}, said)), drawing);
}
