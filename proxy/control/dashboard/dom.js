// Elements out of names, attributes and children. Text is always text: nothing that a database or a client says is read as HTML.

const SVG = new Set(["svg", "path", "line", "text", "g", "circle", "polyline", "polygon"]);

export function h(name, attributes = {}, ...children) {
  const element = SVG.has(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((one) => one !== null && one !== undefined && one !== false));
  return element;
}

const keyOf = (element) => element.id || element.dataset.key || element.getAttribute("href");

// In place of what an element holds; what is null is left out. What had the focus and is drawn anew has it again (by its id, its
// data-key or where it leads): a keyboard goes on where it was.
export function fill(element, ...children) {
  const key = element.contains(document.activeElement) ? keyOf(document.activeElement) : null;
  element.replaceChildren(...children.flat(9).filter((one) => one !== null && one !== undefined && one !== false));
  if (key) [...element.querySelectorAll("a, button, input, select")].find((one) => keyOf(one) === key)?.focus({ preventScroll: true });
}

// A button that is drawn anew between press and release is never clicked.
export const isPressed = (element) => element.querySelector(":active") !== null;

// columns: [{name, of(row), number?}]; a row's cell may be text or an element.
export function table(columns, rows, empty) {
  if (!rows.length) return h("p", { class: "muted" }, empty);
  const kind = (column) => (column.number ? "number" : null);
  const hasNames = columns.some((one) => one.name);
  const head = hasNames && h("tr", {}, columns.map((one) => h("th", { scope: "col", class: kind(one) }, one.name)));
  const body = rows.map((row) =>
    h("tr", {}, columns.map((one) => h("td", { class: kind(one), "data-name": one.name }, one.of(row) ?? "")))
  );
  // Without names of columns a row is short, and stays a row on a phone.
  return h("div", { class: "scroll" }, h("table", { class: hasNames ? "stack" : null }, head ? h("thead", {}, head) : null, h("tbody", {}, body)));
}

export const path = (...parts) => parts.map(encodeURIComponent).join("/");
export const pill = (text, tone) => h("span", { class: `pill ${tone ?? ""}` }, text);
export const ms = (value) => (value === null || value === undefined ? "–" : `${Number(value).toFixed(1)} ms`);
export const count = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en"));
export const percent = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(1)} %`);
export const moment = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "–");

export function span(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
  return `${Math.round(seconds)} s`;
}

export function bytes(size) {
  if (size === null || size === undefined) return "–";
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (size < 1000) return `${size.toFixed(unit === "B" ? 0 : 1)} ${unit}`;
    size /= 1000;
  }
  return `${size.toFixed(1)} TB`;
}
