// The pages. Each is told its place, a `here` whose `tick` (new figures), `heard` (an event) and `leave` it may set, the parts
// of its address and its query.

import { get, page, post, Refused } from "./api.js";
import { chart } from "./chart.js";
import { bytes, count, fill, h, moment, ms, percent, pill, span, table } from "./dom.js";
import { state, trouble } from "./main.js";

const ENDED = ["completed", "aborted", "rolled_back", "failed"];
const TONES = { completed: "good", aborted: "warn", rolled_back: "warn", failed: "bad", pass: "good", warn: "warn", fail: "bad" };
const path = (...parts) => parts.map(encodeURIComponent).join("/");

// --- overview ---------------------------------------------------------------------------------------------------------

function engineState(engine) {
  const seen = engine.state;
  if (!seen) return h("span", { class: "muted" }, "not probed yet");
  if (!seen.is_reachable) return h("span", { class: "bad" }, `down: ${seen.why}`);
  if (seen.role === "standby") return seen.is_replicating ? "standby" : h("span", { class: "warn" }, "standby, does not replicate");
  return seen.is_writable ? "primary" : h("span", { class: "warn" }, seen.is_fenced ? "fenced" : "read-only");
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
    if (!state.status) return;
    const { status } = state;
    const good = status.workers.filter((one) => one.is_configured).length;
    const focused = document.activeElement?.getAttribute?.("href");
    fill(place, 
      h("div", { class: "row apart" }, h("h1", {}, "Overview"),
        h("span", { class: "muted" }, `Turnout ${status.version}, up ${span(Date.now() / 1000 - status.started_at)}, ${good} of ${status.workers.length} workers `, pill(status.is_ready ? "ready" : "not ready", status.is_ready ? "good" : "bad"))),
      ...status.services.map(serviceCard));
    // What had the focus has been drawn anew: a keyboard goes on where it was.
    if (focused) [...place.querySelectorAll("a")].find((one) => one.getAttribute("href") === focused)?.focus();
  };
  here.tick = here.heard = draw;
  draw();
}

// --- sessions ---------------------------------------------------------------------------------------------------------

const PAGE = 100;

export async function sessions(place, here, _parts, query) {
  const wanted = Object.fromEntries(query);
  const offset = Number(wanted.offset ?? 0);
  const asked = new URLSearchParams({ limit: PAGE, offset });
  for (const key of ["user", "database", "portability", "standing"]) if (wanted[key]) asked.set(key, wanted[key]);
  const grade = { A: "A: nothing to carry", B: "B: carried", C: "C: at a boundary", D: "D: pinned" };
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
  fill(place, h("h1", {}, "Sessions"),
    h("div", { class: "card row" }, choice("portability", "Portability", grade),
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
        { name: "why", of: (one) => h("span", { class: one.pins.length ? "warn" : "muted" }, one.pins.length ? one.pins.join(", ") : Object.entries(one.carried).map(([name, number]) => `${number} ${name}`).join(", ")) },
        { name: "idle", number: true, of: (one) => span(one.idle_s) },
      ], found, "No session fits."),
      h("div", { class: "pager" },
        h("button", { disabled: offset === 0, onclick: () => go({ offset: Math.max(0, offset - PAGE) }) }, "Earlier"),
        h("span", { class: "muted", role: "status" }, total ? `${count(offset + 1)} to ${count(last)} of ${count(total)}` : "none"),
        h("button", { disabled: last >= total, onclick: () => go({ offset: offset + PAGE }) }, "Later"),
        h("button", { onclick: () => draw().catch((error) => list.prepend(trouble(error))) }, "Look again")));
  };
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

export async function policies(place) {
  const list = h("div", { class: "card" }, "…");
  const decided = h("div", { class: "card" }, "…");
  fill(place, h("h1", {}, "Policies"), list, h("h2", {}, "Decisions"), decided);
  const draw = async () => {
    const [all, decisions] = await Promise.all([get("/v1/policies"), get("/v1/policy-history?limit=50")]);
    const press = (name, what) => h("button", {
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
      { name: "when", of: ({ policy }) => policy.trigger.replaceAll("_", " ") },
      { name: "goes to", of: ({ policy }) => `${policy.target_engine}, ${policy.strategy}` },
      { name: "priority", number: true, of: ({ policy }) => String(policy.priority) },
      { name: "decided last", of: ({ last }) => (last ? last.text ?? last.code : "–") },
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

// --- a switch: plan, confirm, watch, read --------------------------------------------------------------------------------

function checks(rows) {
  return table([
    { name: "", of: (one) => pill(one.verdict, TONES[one.verdict]) },
    { name: "check", of: (one) => one.name.replaceAll("_", " ") },
    { name: "found", of: (one) => h("span", {}, one.found, one.verdict !== "pass" && one.remedy ? h("div", {}, h("strong", {}, "To do: "), one.remedy) : null) },
  ], rows, "no check");
}

export async function switching(place, _here, [service, target]) {
  const outcome = h("div", { "aria-live": "polite" });
  const report = h("div", {}, h("p", { class: "muted" }, "The checks run …"));
  const typed = h("input", { id: "confirm", autocomplete: "off", autocapitalize: "none", spellcheck: "false", "aria-describedby": "confirm-help" });
  const button = h("button", { class: "primary", disabled: true }, `Switch ${service} to ${target}`);
  const strategy = h("select", {}, ["graceful", "immediate", "rolling", "canary"].map((one) => h("option", { value: one }, one)));
  const drain = h("input", { type: "number", min: 0, max: 3600, step: "any", placeholder: "the service's own" });
  const force = h("input", { type: "checkbox" });
  const reason = h("input", { maxlength: 500 });
  const body = () => ({
    target_engine: target, strategy: strategy.value, force: force.checked, reason: reason.value,
    ...(drain.value === "" ? {} : { drain_timeout_seconds: Number(drain.value) }),
  });
  const url = `/v1/services/${path(service)}/switch`;
  const rehearse = async () => {
    fill(report, h("p", { class: "muted" }, "The checks run …"));
    try {
      const readiness = await post(url, { ...body(), dry_run: true });
      fill(report, 
        h("p", { class: `notice ${readiness.is_ready ? "good" : "bad"}` }, readiness.is_ready ? "Ready: the switch may begin." : "Not ready: the switch would be refused."),
        checks(readiness.checks));
    } catch (error) {
      fill(report, trouble(error));
    }
  };
  typed.addEventListener("input", () => { button.disabled = typed.value !== target; });
  const submit = async (event) => {
    event.preventDefault();
    if (typed.value !== target) return;
    button.disabled = true;
    fill(outcome, h("p", { class: "muted" }, "The checks run once more …"));
    try {
      const record = await post(url, body());
      location.hash = `/watch/${path(record.id)}`;
    } catch (error) {
      button.disabled = false;
      const failed = error instanceof Refused ? (error.problem.checks ?? []).filter((one) => one.verdict === "fail") : [];
      fill(outcome, trouble(error), failed.length ? checks(failed) : "");
    }
  };
  fill(place, 
    h("h1", {}, `Plan: ${service} to ${target}`),
    h("section", { class: "card" }, h("h2", {}, "1. What"),
      h("div", { class: "row" }, h("label", {}, "Strategy", strategy), h("label", {}, "Drain timeout, seconds", drain), h("label", {}, "Reason", reason),
        h("label", { class: "check" }, force, "force what may be forced (admin)"), h("button", { type: "button", onclick: rehearse }, "Check again"))),
    h("section", { class: "card", "aria-live": "polite" }, h("h2", {}, "2. Is it ready?"), report),
    h("form", { class: "card", onsubmit: submit }, h("h2", {}, "3. Do it"),
      h("p", { id: "confirm-help", class: "muted" }, "Every session of the service moves; clients wait for a moment and keep their connections. Until the promotion begins it can be cancelled. Type the target's name to confirm."),
      h("div", { class: "row" }, h("label", {}, `Type ${target}`, typed), button), outcome));
  strategy.addEventListener("change", rehearse);
  await rehearse();
}

const HOLDING = ["holding", "draining", "fencing", "catching_up", "promoting", "cutting_over", "releasing"];

function timeline(stamps, phase, now_us) {
  const steps = Object.entries(stamps).sort((a, b) => a[1] - b[1]);
  const end = Math.max(ENDED.includes(phase) && steps.length ? steps[steps.length - 1][1] : now_us, 1);
  return h("ol", { class: "timeline" }, steps.map(([name, at], index) => {
    const until = steps[index + 1]?.[1] ?? end;
    const isLast = index === steps.length - 1;
    const bar = h("span", { class: "bar" });
    // Set by script, not by an attribute: the policy of this page lets no markup bring styles.
    bar.style.left = `${(100 * at) / end}%`;
    bar.style.width = `${Math.max(0, (100 * (until - at)) / end)}%`;
    const kind = `${HOLDING.includes(name) ? "holds" : ""} ${isLast && !ENDED.includes(name) ? "running" : ""}`;
    return h("li", { class: kind }, h("strong", { class: TONES[name] ?? "" }, name.replaceAll("_", " ")), h("span", { class: "track" }, bar),
      h("span", { class: "muted mono" }, isLast && ENDED.includes(name) ? ms(at / 1000) : `+${ms((until - at) / 1000)}`));
  }));
}

function progress(id) {
  const workers = [...(state.progress.get(id) ?? new Map()).values()];
  if (!workers.length) return null;
  const sum = (key) => workers.reduce((all, one) => all + one[key], 0);
  const held = sum("held"), draining = sum("draining");
  const dots = (number, kind) => Array.from({ length: Math.min(number, 600) }, () => h("i", { class: kind }));
  const waiting = workers.flatMap((one) => one.waiting_for);
  return h("div", {}, h("p", {}, `${count(held)} held, ${count(draining)} finish their transactions`),
    h("div", { class: "held", role: "img", "aria-label": `${held} sessions held, ${draining} draining` }, dots(held, ""), dots(draining, "drains")),
    waiting.length ? h("p", { class: "muted" }, `waits for: ${waiting.join("; ")}`) : null);
}

export async function watching(place, here, [id]) {
  let record = null, gone = false;
  const outcome = h("div", {});
  const draw = () => {
    const isOver = ENDED.includes(record.phase);
    const waits = record.phase === "pending";
    const cancel = h("button", {
      class: "danger",
      onclick: async () => {
        try {
          await post(`/v1/switches/${path(id)}/cancel`);
        } catch (error) {
          fill(outcome, trouble(error));
        }
      },
    }, "Cancel");
    fill(place, 
      h("div", { class: "row apart" }, h("h1", {}, `${record.service}: ${record.source} to ${record.target}`), h("span", { role: "status" }, pill(record.phase.replaceAll("_", " "), TONES[record.phase] ?? "")), isOver ? null : cancel),
      outcome,
      record.error ? h("p", { class: "notice bad" }, record.error, record.remedy ? ` – ${record.remedy}` : "") : null,
      waits && record.due_at ? h("p", { class: "notice" }, `It begins ${moment(record.due_at)}.`) : null,
      h("section", { class: "card", "aria-label": "timeline" }, timeline(record.stamps, record.phase, (Date.now() / 1000 - record.began_at) * 1e6), isOver ? null : progress(id)),
      isOver ? h("p", {}, h("a", { class: "button", href: `#/report/${path(id)}` }, "Read the report")) : null,
      isOver && record.report ? figures(record.report) : null);
  };
  here.leave = () => { gone = true; };
  while (!gone) {
    record = await get(`/v1/switches/${path(id)}`);
    if (gone) return;
    draw();
    if (ENDED.includes(record.phase) && record.report) return;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

const FIGURES = {
  cutover_ms: "Turnout's own part", blackout_ms: "first request held to first row from the target", drain_ms: "waiting for open transactions",
  catchup_ms: "the target's replication", promote_ms: "the target's promotion", switch_duration_ms: "the whole switch",
};

function figures(found) {
  const { figures: all, waits } = found;
  const top = Math.max(1, ...(waits?.histogram ?? []).map((one) => one.count));
  const rows = Object.entries(FIGURES).filter(([name]) => all[name] !== undefined && all[name] !== null);
  return h("section", { class: "card" }, h("h2", {}, "Figures"),
    h("div", { class: "two" },
      h("div", {}, table([{ name: "", of: ([, text]) => text }, { name: "", number: true, of: ([name]) => ms(all[name]) }], rows, "none"),
        h("p", {}, `${count(all.affected_transactions ?? 0)} requests waited, ${count(all.errors_visible ?? 0)} errors seen by clients`)),
      h("div", {}, h("h3", {}, "How long requests waited"),
        waits?.histogram?.length ? h("ol", { class: "timeline" }, waits.histogram.map((one) => {
          const bar = h("span", { class: "bar" });
          bar.style.width = `${(100 * one.count) / top}%`;
          return h("li", {}, h("span", {}, `under ${one.under_us / 1000} ms`), h("span", { class: "track" }, bar), h("span", { class: "mono" }, count(one.count)));
        })) : h("p", { class: "muted" }, "No request had to wait."))));
}

export async function report(place, _here, [id]) {
  const found = await get(`/v1/switches/${path(id)}/report`);
  const stamps = Object.fromEntries(found.phases_us.map((one) => [one.phase, one.at_us]));
  const { fence, positions, audit } = found;
  fill(place, 
    h("div", { class: "row apart" }, h("h1", {}, `Switch ${id}`), h("button", { class: "no-print", onclick: () => window.print() }, "Print")),
    h("section", { class: "card" },
      h("p", {}, pill(found.phase.replaceAll("_", " "), TONES[found.phase] ?? ""), ` ${found.service}: ${found.source} to ${found.target}, ${found.strategy}, began ${moment(found.began_at)}, asked for by ${found.plan.requested_by || "nobody"}`),
      found.plan.reason ? h("p", {}, `Reason: ${found.plan.reason}`) : null,
      found.error ? h("p", { class: "notice bad" }, found.error, found.remedy ? ` – ${found.remedy}` : "") : null,
      timeline(stamps, found.phase, 0)),
    figures(found),
    h("section", { class: "card" }, h("h2", {}, "Proof"), h("ul", {},
      fence ? h("li", {}, `Fence on ${fence.engine}: ${fence.how}${fence.refused_with ? `; a write was refused with ${fence.refused_with}` : ""}; ${fence.writers_left} writers left.`) : null,
      positions?.source ? h("li", {}, "Source stood at ", h("code", {}, positions.source), ", target reached ", h("code", {}, positions.target ?? "nothing"), ".") : null,
      audit?.checked ? h("li", {}, `${count(audit.checked)} newest commits of the source were looked for on the target; ${count(audit.lost)} are missing.`) : null,
      h("li", {}, `${count(found.sessions ?? 0)} sessions moved; ${count(found.interrupted_count ?? 0)} did not come through.`))),
    found.interrupted?.length ? h("section", { class: "card" }, h("h2", {}, "Sessions that did not come through"), table([
      { name: "session", number: true, of: (one) => String(one.session) }, { name: "user", of: (one) => one.user }, { name: "why", of: (one) => one.reason }, { name: "told", of: (one) => one.code_sent },
    ], found.interrupted, "none")) : null,
    h("section", { class: "card" }, h("h2", {}, "Checks"), checks(found.checks ?? [])));
}
