// Which page is shown, and what all of them share: figures of the last minutes, and what is heard from the stream of events.

import { alerts } from "./alerts.js";
import { get, listen, Refused } from "./api.js";
import { h } from "./dom.js";
import { history, overview, policies, pools, sessions } from "./pages.js";
import { report, switching, watching } from "./switches.js";

const POLL_MS = 2000;
const KEPT_S = 300;

export const state = { status: null, engines: [], traffic: new Map(), marks: [], progress: new Map() };

const PAGES = [
  [/^\/$/, overview], [/^\/sessions$/, sessions], [/^\/pools$/, pools], [/^\/policies$/, policies], [/^\/history$/, history],
  [/^\/alerts$/, alerts],
  [/^\/switch\/([^/]+)\/([^/]+)$/, switching], [/^\/watch\/([^/]+)$/, watching], [/^\/report\/([^/]+)$/, report],
];

let shown = null;
let toldAt = 0;
let isLive = false;

function show() {
  const [path, query] = (location.hash.slice(1) || "/").split("?");
  const main = document.getElementById("main");
  shown?.leave?.();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${path}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const [pattern, make] of PAGES) {
    const found = pattern.exec(path);
    if (!found) continue;
    const place = h("div", {});
    main.replaceChildren(place);
    shown = { leave: null, tick: null, heard: null };
    guard(() => make(place, shown, found.slice(1).map(decodeURIComponent), new URLSearchParams(query)), place);
    return;
  }
  main.replaceChildren(h("h1", {}, "There is no such page"), h("a", { href: "#/" }, "Overview"));
}

export function trouble(error) {
  const problem = error instanceof Refused ? error.problem : {};
  return h("div", { class: "notice bad", role: "alert" }, h("strong", {}, error.message), problem.remedy ? ` – ${problem.remedy}` : null);
}

async function guard(work, place) {
  try {
    await work();
  } catch (error) {
    place.querySelector(":scope > .notice.bad")?.remove();
    place.prepend(trouble(error));
  }
}

function remember(status, at) {
  for (const { view, requests_total: total } of status.services) {
    const kept = state.traffic.get(view.name) ?? { total: null, at: 0, rate: [], latency: [] };
    if (kept.total !== null && at > kept.at) kept.rate.push([at, Math.max(0, total - kept.total) / (at - kept.at)]);
    const active = view.engines.find((one) => one.is_active);
    kept.latency.push([at, active?.figures?.response_time_ms ?? null]);
    [kept.total, kept.at] = [total, at];
    for (const points of [kept.rate, kept.latency]) while (points.length && points[0][0] < at - KEPT_S) points.shift();
    state.traffic.set(view.name, kept);
  }
}

function say(text) {
  document.getElementById("live").textContent = text ?? (isLive ? "live" : "connecting");
}

function take(status) {
  toldAt = Date.now();
  say();
  state.status = status;
  remember(status, toldAt / 1000);
  if (!document.hidden) shown?.tick?.();
}

// The status comes with the events, one look for all dashboards; it is asked for at first, and while no events come.
async function poll() {
  if (!document.hidden && Date.now() - toldAt > 1.5 * POLL_MS) {
    try {
      take(await get("/v1/status"));
    } catch (error) {
      say("no answer");
    }
  }
  setTimeout(poll, POLL_MS);
}

function heard(event) {
  // One mark for each switch: where it began to hold, or ended without having held anybody.
  if (event.kind === "switch.phase" && event.data.phase === "holding") {
    state.marks.push({ id: event.data.id, at: event.at, service: event.service, text: `to ${event.data.target}` });
  } else if (event.kind === "switch.ended") {
    const mark = state.marks.find((one) => one.id === event.data.id);
    if (!mark) state.marks.push({ id: event.data.id, at: event.at, service: event.service, text: event.data.phase });
    else if (event.data.phase !== "completed") mark.text = event.data.phase.replaceAll("_", " ");
  }
  while (state.marks.length > 50) state.marks.shift();
  if (event.kind === "switch.progress") {
    const seen = state.progress.get(event.data.id) ?? new Map();
    seen.set(event.data.worker, event.data);
    state.progress.set(event.data.id, seen);
  }
  shown?.heard?.(event);
}

window.addEventListener("resize", () => shown?.tick?.());
window.addEventListener("hashchange", () => { show(); document.getElementById("main").focus(); });
show();
poll();
listen(heard, take, (is_live) => { isLive = is_live; say(); });
