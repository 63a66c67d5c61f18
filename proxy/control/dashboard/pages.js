// The pages that show what is. Each is told its place, a `here` whose `tick` (new figures), `heard` (an event) and `leave` it may
// set, the parts of its address and its query. Those of a switch are in switches.js.

import { get, page, post } from "./api.js";
import { chart } from "./chart.js";
import { bytes, count, fill, h, isPressed, moment, ms, path, percent, pill, span, table } from "./dom.js";
import { state, trouble } from "./main.js";
import { ENDED, TONES } from "./switches.js";

// --- overview ---------------------------------------------------------------------------------------------------------

function engineState(engine) {
  const seen = engine.state;
  if (!seen) return h("span", { class: "muted" }, "not probed yet");
  if (!seen.is_reachable) return h("span", { class: "bad" }, `down: ${seen.why}`);
  if (seen.role === "standby") return seen.is_replicating ? "standby" : h("span", { class: "warn" }, "standby, does not replicate");
  return seen.is_writable ? "primary" : h("span", { class: "warn" }, seen.is_fenced ? "fenced" : "read-only");
}

// What is out of the ordinary, a line each.
function remarks(view) {
  const { failover } = view;
  const stopped = (word, all, names) => (all ? [`${word} by an operator: all databases`] : names.length ? [`${word} by an operator: ${names.join(", ")}`] : []);
  const texts = [...stopped("paused", view.is_paused, view.paused), ...stopped("disabled", false, view.disabled)];
  if (failover && !["answering", "unseen"].includes(failover.health)) texts.push(`active engine ${failover.health}: ${failover.why}`);
  if (failover && !failover.is_automatic) texts.push(`automatic failover is off${failover.why_not ? `: ${failover.why_not}` : ""}`);
  for (const one of view.engines) if (one.deposed) texts.push(`${one.name} must not take writes: it is fenced whenever it does; make it a standby of the active engine`);
  return [
    view.waiting.map((one) => h("p", { class: "notice" }, `a switch to ${one.target} ${one.due_at ? `begins ${moment(one.due_at)}` : "begins after the one before it"} – `, h("a", { href: `#/watch/${path(one.id)}` }, "look at it"))),
    texts.map((text) => h("p", { class: "notice" }, text)),
  ];
}

function serviceCard(service) {
  const view = service.view;
  const kept = state.traffic.get(view.name) ?? { rate: [], latency: [] };
  const marks = state.marks.filter((one) => one.service === view.name);
  const running = view.running;
  return h("section", { class: "card", "aria-label": `service ${view.name}` },
    h("div", { class: "row apart" },
      h("h2", {}, view.name, " ", h("small", { class: "muted" }, `${view.protocol}, ${view.pool_mode} mode, database ${view.databases.join(", ") || "every other"}`)),
      h("span", { class: "row muted" }, h("span", {}, `${count(service.sessions)} sessions`), service.held ? pill(`${service.held} held`, "warn") : null, h("span", {}, `epoch ${view.epoch}`))),
    running ? h("p", { class: "notice" }, `switch to ${running.target}: ${running.phase} – `, h("a", { href: `#/watch/${path(running.id)}` }, "watch it")) : null,
    remarks(view),
    table([
      { name: "engine", of: (one) => h("span", {}, h("strong", {}, one.name), " ", one.is_active ? pill("active", "good") : null) },
      { name: "address", of: (one) => h("code", {}, one.address) },
      { name: "is", of: engineState },
      { name: "version", of: (one) => one.state?.version ?? "" },
      { name: "lag", number: true, of: (one) => (one.state?.role === "standby" ? (one.state.lag_bytes !== null ? bytes(one.state.lag_bytes) : ms(one.state.lag_ms)) : "–") },
      { name: "connections", number: true, of: (one) => count(one.figures?.active_connections) },
      { name: "errors", number: true, of: (one) => percent(one.figures?.error_rate_percent) },
      { name: "available", number: true, of: (one) => percent(one.figures?.availability_percent) },
      { name: "", of: (one) => (one.is_active ? null : h("a", { class: "button", href: `#/switch/${path(view.name, one.name)}`, "aria-label": `Plan a switch of ${view.name} to ${one.name}` }, "Switch …")) },
    ], view.engines, "no engine"),
    h("div", { class: "two" },
      chart("Requests per second", "/s", kept.rate, marks, 300),
      chart("Response time of the active engine", "ms", kept.latency, marks, 300)));
}

export function overview(place, here) {
  const draw = () => {
    if (!state.status || isPressed(place)) return;
    const { status } = state;
    const good = status.workers.filter((one) => one.is_configured).length;
    fill(place,
      h("div", { class: "row apart" }, h("h1", {}, "Overview"),
        h("span", { class: "muted" }, `Turnout ${status.version}, up ${span(Date.now() / 1000 - status.started_at)}, ${good} of ${status.workers.length} workers `, pill(status.is_ready ? "ready" : "not ready", status.is_ready ? "good" : "bad"))),
      ...status.services.map(serviceCard));
  };
  here.tick = draw;
  here.heard = (event) => { if (event.kind !== "switch.progress") draw(); };
  draw();
}

// --- sessions ---------------------------------------------------------------------------------------------------------

const PAGE = 100;
const GRADES = { A: "A: nothing to carry", B: "B: carried", C: "C: at a boundary", D: "D: pinned" };

// How many of each grade, and what pins the last of them; as the workers counted a moment ago.
function byPortability() {
  const sum = (name) => {
    const all = {};
    for (const service of state.status?.services ?? []) for (const [key, number] of Object.entries(service[name] ?? {})) all[key] = (all[key] ?? 0) + number;
    return all;
  };
  const grades = sum("grades"), pins = Object.entries(sum("pinned")).sort((a, b) => b[1] - a[1]);
  return h("div", {},
    h("p", { class: "row" }, Object.entries(GRADES).map(([grade, text]) => h("a", { class: `pill ${grade === "D" && grades.D ? "warn" : ""}`, href: `#/sessions?portability=${grade}` }, `${text}: ${count(grades[grade] ?? 0)}`))),
    h("p", { class: "muted" }, pins.length ? `Pinned by: ${pins.map(([name, number]) => `${name} (${count(number)})`).join(", ")}.` : "Nothing pins a session to its backend."));
}

export async function sessions(place, here, _parts, query) {
  const wanted = Object.fromEntries(query);
  const offset = Number(wanted.offset ?? 0);
  const asked = new URLSearchParams({ limit: PAGE, offset });
  for (const key of ["user", "database", "portability", "standing"]) if (wanted[key]) asked.set(key, wanted[key]);
  const go = (changes) => {
    const next = Object.entries({ ...wanted, ...changes }).filter(([, value]) => value !== "" && value !== 0);
    location.hash = `/sessions${next.length ? `?${new URLSearchParams(next)}` : ""}`;
  };
  const choice = (name, label, options) => h("label", {}, label,
    h("select", { onchange: (event) => go({ [name]: event.target.value, offset: 0 }) },
      h("option", { value: "" }, "all"),
      Object.entries(options).map(([value, text]) => h("option", { value, selected: wanted[name] === value }, text))));
  const text = (name, label) => h("label", {}, label,
    h("input", { value: wanted[name] ?? "", onchange: (event) => go({ [name]: event.target.value.trim(), offset: 0 }) }));
  const list = h("div", { class: "card" }, "…");
  const counts = h("div", { class: "card" });
  fill(place, h("h1", {}, "Sessions"), counts,
    h("div", { class: "card row" }, choice("portability", "Portability", GRADES),
      choice("standing", "Standing", { serving: "serving", held: "held", draining: "draining", arriving: "arriving" }), text("user", "User"), text("database", "Database")),
    list);
  const draw = async () => {
    const { found, total } = await page(`/v1/sessions?${asked}`);
    const last = Math.min(offset + PAGE, total);
    fill(list,
      table([
        { name: "id", number: true, of: (one) => String(one.id) },
        { name: "who", of: (one) => `${one.user}@${one.database}` },
        { name: "client", of: (one) => h("code", {}, one.client) },
        { name: "engine", of: (one) => one.engine || "–" },
        { name: "standing", of: (one) => (one.in_transaction ? `${one.standing}, in a transaction` : one.standing) },
        { name: "grade", of: (one) => pill(one.portability, one.portability === "D" ? "warn" : "") },
        { name: "why", of: (one) => h("span", { class: one.pins.length ? "warn" : "muted" }, one.pins.length ? one.pins.join(", ") : Object.entries(one.carried).map(([name, number]) => `${number} ${number === 1 ? name.replace(/s$/, "") : name}`).join(", ")) },
        { name: "idle", number: true, of: (one) => span(one.idle_s) },
      ], found, "No session fits."),
      h("div", { class: "pager" },
        h("button", { "data-key": "earlier", disabled: offset === 0, onclick: () => go({ offset: Math.max(0, offset - PAGE) }) }, "Earlier"),
        h("span", { class: "muted", role: "status" }, total ? `${count(offset + 1)} to ${count(last)} of ${count(total)}` : "none"),
        h("button", { "data-key": "later", disabled: last >= total, onclick: () => go({ offset: offset + PAGE }) }, "Later"),
        h("button", { "data-key": "again", onclick: () => draw().catch((error) => list.prepend(trouble(error))) }, "Look again")));
  };
  here.tick = () => {
    if (isPressed(counts)) return;
    counts.hidden = !(state.status?.services ?? []).some((service) => Object.keys(service.grades ?? {}).length);
    fill(counts, byPortability());
  };
  here.tick();
  await draw();
}

// --- pools, policies, history -----------------------------------------------------------------------------------------

export async function pools(place, here) {
  const list = h("div", { class: "card" }, "…");
  fill(place, h("h1", {}, "Pools"), h("p", { class: "muted" }, "Backends of each engine, database and user, in all workers together."), list);
  const draw = async () => fill(list, table([
    { name: "service", of: (one) => one.service },
    { name: "engine", of: (one) => one.engine },
    { name: "database", of: (one) => one.database },
    { name: "user", of: (one) => one.user },
    { name: "idle", number: true, of: (one) => count(one.idle) },
    { name: "in use", number: true, of: (one) => count(one.in_use) },
    { name: "clients waiting", number: true, of: (one) => h("span", { class: one.waiting ? "warn" : "" }, count(one.waiting)) },
  ], await get("/v1/pools"), "No pool yet: nobody has logged in."));
  here.tick = () => draw().catch(() => {});
  await draw();
}

// What makes it fire.
function limits(policy) {
  const over = `over ${policy.window_duration}\u00a0s`;
  switch (policy.trigger) {
    case "performance_degradation": return `above ${policy.response_time_threshold_ms} ms ${over}`;
    case "error_rate": return `above ${policy.error_rate_threshold} % ${over}`;
    case "scheduled": return `${policy.cron_expression} ${policy.time_zone}`;
    case "load_threshold":
      return [["processor", policy.cpu_threshold, " %"], ["memory", policy.memory_threshold, " %"], ["connections", policy.connection_threshold, ""]]
        .filter(([, limit]) => limit).map(([name, limit, unit]) => `${name} above ${limit}${unit}`).join(", ") + ` ${over}`;
    default: return "";
  }
}

export async function policies(place, here) {
  const list = h("div", { class: "card" }, "…");
  const decided = h("div", { class: "card" }, "…");
  fill(place, h("h1", {}, "Policies"), list, h("h2", {}, "Decisions"), decided);
  const draw = async () => {
    const [all, decisions] = await Promise.all([get("/v1/policies"), get("/v1/policy-history?limit=50")]);
    const press = (name, what) => h("button", {
      "data-key": name,
      "aria-label": `${what === "enable" ? "Enable" : "Disable"} policy ${name}`,
      onclick: async () => {
        try {
          await post(`/v1/policies/${path(name)}/${what}`);
          await draw();
        } catch (error) {
          list.prepend(trouble(error));
        }
      },
    }, what === "enable" ? "Enable" : "Disable");
    fill(list, table([
      { name: "policy", of: ({ policy }) => h("strong", {}, policy.name) },
      { name: "service", of: ({ policy }) => policy.service },
      { name: "when", of: ({ policy }) => h("span", {}, policy.trigger.replaceAll("_", " "), h("div", { class: "muted" }, limits(policy))) },
      { name: "goes to", of: ({ policy }) => `${policy.target_engine}, ${policy.strategy}` },
      { name: "priority", number: true, of: ({ policy }) => String(policy.priority) },
      { name: "decided last", of: ({ last }) => (last && !["waits", "disabled"].includes(last.code) ? h("span", {}, last.text || last.code, h("div", { class: "muted" }, moment(last.at))) : "–") },
      { name: "next", of: ({ next_time: at }) => (at ? moment(at) : "–") },
      { name: "is", of: ({ policy }) => pill(policy.enabled ? "enabled" : "disabled", policy.enabled ? "good" : "") },
      { name: "", of: ({ policy }) => press(policy.name, policy.enabled ? "disable" : "enable") },
    ], all, "No policy is set. `turnout policy set` makes one."));
    fill(decided, table([
      { name: "when", of: (one) => moment(one.at) },
      { name: "policy", of: (one) => one.policy },
      { name: "decision", of: (one) => `${one.code.replaceAll("_", " ")}${one.text ? `: ${one.text}` : ""}` },
    ], decisions, "Nothing was decided yet."));
  };
  here.heard = (event) => { if (event.kind === "policy.decided" && !isPressed(place)) draw().catch(() => {}); };
  await draw();
}

export async function history(place, here) {
  const list = h("div", { class: "card" }, "…");
  fill(place, h("h1", {}, "History"), list);
  const draw = async () => fill(list, table([
    { name: "began", of: (one) => moment(one.began_at) },
    { name: "service", of: (one) => one.service },
    { name: "from – to", of: (one) => `${one.source} – ${one.target}` },
    { name: "strategy", of: (one) => one.strategy },
    { name: "ended", of: (one) => pill(one.phase.replaceAll("_", " "), TONES[one.phase] ?? "") },
    { name: "cutover", number: true, of: (one) => (one.phase === "completed" ? ms(one.figures?.cutover_ms) : "–") },
    { name: "longest wait", number: true, of: (one) => (one.phase === "completed" ? ms(one.figures?.hold_ms?.max) : "–") },
    { name: "asked for by", of: (one) => one.plan.requested_by },
    { name: "", of: (one) => h("a", { href: `#/${ENDED.includes(one.phase) ? "report" : "watch"}/${path(one.id)}` }, ENDED.includes(one.phase) ? "report" : "watch") },
  ], await get("/v1/switches?limit=100"), "No switch yet."));
  here.heard = (event) => { if (event.kind.startsWith("switch.") && event.kind !== "switch.progress") draw().catch(() => {}); };
  await draw();
}
