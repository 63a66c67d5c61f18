// The pages of a switch: it is planned and confirmed, watched, and its report is read.

import { get, post, Refused } from "./api.js";
import { dots } from "./chart.js";
import { count, fill, h, moment, ms, path, pill, table } from "./dom.js";
import { state, trouble } from "./main.js";

export const ENDED = ["completed", "aborted", "rolled_back", "failed"];
export const TONES = { completed: "good", aborted: "warn", rolled_back: "warn", failed: "bad", pass: "good", warn: "warn", fail: "bad" };

function checks(rows) {
  if (!rows.length) return h("p", { class: "muted" }, "no check");
  return h("ul", { class: "checks" }, rows.map((one) => h("li", {}, pill(one.verdict, TONES[one.verdict]), h("strong", {}, one.name.replaceAll("_", " ")),
    h("span", {}, one.found, one.verdict !== "pass" && one.remedy ? h("div", {}, h("strong", {}, "To do: "), one.remedy) : null))));
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

const ENLARGED_BELOW = 0.4;

function bars(steps, from, until, phase) {
  const whole = Math.max(until - from, 1);
  return h("ol", { class: "timeline" }, steps.map(({ name, at, to, isLast }) => {
    const bar = h("span", { class: "bar" });
    // Set by script, not by an attribute: the policy of this page lets no markup bring styles.
    bar.style.left = `${(100 * (at - from)) / whole}%`;
    bar.style.width = `${Math.max(0, (100 * (to - at)) / whole)}%`;
    const kind = `${HOLDING.includes(name) ? "holds" : ""} ${isLast && !ENDED.includes(phase) ? "running" : ""}`;
    return h("li", { class: kind }, h("strong", { class: TONES[name] ?? "" }, name.replaceAll("_", " ")), h("span", { class: "track" }, bar),
      h("span", { class: "muted mono" }, isLast && ENDED.includes(phase) ? ms(at / 1000) : `+${ms((to - at) / 1000)}`));
  }));
}

// Each phase with its time; and enlarged, where it is short beside the rest, the time in which clients may have waited.
function timeline(stamps, phase, now_us) {
  const entered = Object.entries(stamps).sort((a, b) => a[1] - b[1]);
  const last = entered.length - 1;
  const end = Math.max(ENDED.includes(phase) && entered.length ? entered[last][1] : now_us, 1);
  const steps = entered.map(([name, at], index) => ({ name, at, to: entered[index + 1]?.[1] ?? end, isLast: index === last }));
  const held = steps.filter(({ name }) => HOLDING.includes(name));
  const from = held[0]?.at ?? 0, until = held[held.length - 1]?.to ?? 0;
  const isShort = held.length > 1 && until - from < ENLARGED_BELOW * end;
  return h("div", {}, bars(steps, 0, end, phase),
    isShort ? [h("h3", {}, `While clients were held: ${ms((until - from) / 1000)}`), bars(held, from, until, phase)] : null);
}

function progress(id) {
  const workers = [...(state.progress.get(id) ?? new Map()).values()];
  if (!workers.length) return null;
  const sum = (key) => workers.reduce((all, one) => all + one[key], 0);
  const held = sum("held"), draining = sum("draining");
  const squares = (number, kind) => Array.from({ length: Math.min(number, 600) }, () => h("i", { class: kind }));
  const waiting = workers.flatMap((one) => one.waiting_for);
  return h("div", {}, h("p", {}, `${count(held)} held, ${count(draining)} finish their transactions`),
    h("div", { class: "held", role: "img", "aria-label": `${held} sessions held, ${draining} draining` }, squares(held, ""), squares(draining, "drains")),
    waiting.length ? h("p", { class: "muted" }, `waits for: ${waiting.join("; ")}`) : null);
}

const LOOK_MS = 200;
const pause = () => new Promise((resolve) => setTimeout(resolve, LOOK_MS));

export async function watching(place, here, [id]) {
  let gone = false;
  here.leave = () => { gone = true; };
  // These stay while the rest is drawn anew: who listens to the page hears of each phase once, and Cancel keeps the focus.
  const title = h("h1", {}, "Switch"), status = h("span", { role: "status" }), outcome = h("div", { "aria-live": "polite" }), body = h("div", {});
  const cancel = h("button", {
    class: "danger",
    onclick: async () => {
      try {
        await post(`/v1/switches/${path(id)}/cancel`);
        fill(outcome);
      } catch (error) {
        fill(outcome, trouble(error));
      }
    },
  }, "Cancel");
  fill(place, h("div", { class: "row apart" }, title, h("span", { class: "row" }, status, cancel)), outcome, body);
  const draw = (record) => {
    const isOver = ENDED.includes(record.phase), phase = record.phase.replaceAll("_", " ");
    title.textContent = `${record.service}: ${record.source} to ${record.target}`;
    if (status.textContent !== phase) fill(status, pill(phase, TONES[record.phase] ?? ""));
    fill(body,
      record.error ? h("p", { class: "notice bad" }, record.error, record.remedy ? ` – ${record.remedy}` : "") : null,
      record.phase === "pending" && record.due_at ? h("p", { class: "notice" }, `It begins ${moment(record.due_at)}.`) : null,
      h("section", { class: "card", "aria-label": "timeline" }, timeline(record.stamps, record.phase, (Date.now() / 1000 - record.began_at) * 1e6), isOver ? null : progress(id)),
      isOver ? h("p", {}, h("a", { class: "button", href: `#/report/${path(id)}` }, "Read the report")) : null,
      isOver && record.report ? figures(record.report) : null);
    const wasFocused = document.activeElement === cancel;
    cancel.hidden = isOver;
    if (isOver && wasFocused) body.querySelector("a").focus();
  };
  while (!gone) {
    try {
      const record = await get(`/v1/switches/${path(id)}`);
      if (gone) return;
      draw(record);
      if (ENDED.includes(record.phase) && record.report) return;
    } catch (error) {
      if (error instanceof Refused) throw error;
      fill(outcome, h("p", { class: "notice" }, "No answer from the control port; asking again."));
    }
    await pause();
  }
}

const FIGURES = {
  cutover_ms: "Turnout's own part", blackout_ms: "first request held to first row from the target", drain_ms: "waiting for open transactions",
  catchup_ms: "the target's replication", promote_ms: "the target's promotion", switch_duration_ms: "the whole switch",
};

function figures(found) {
  const { figures: all, waits } = found, longest = waits?.longest_us ?? [];
  const rows = Object.entries(FIGURES).filter(([name]) => all[name] !== undefined && all[name] !== null);
  return h("section", { class: "card" }, h("h2", {}, "Figures"),
    h("div", { class: "two" },
      h("div", {}, table([{ name: "", of: ([, text]) => text }, { name: "", number: true, of: ([name]) => ms(all[name]) }], rows, "none"),
        h("p", {}, `${count(all.affected_transactions ?? 0)} requests waited, ${count(all.errors_visible ?? 0)} errors seen by clients`)),
      h("div", {}, h("h3", {}, "Each request that waited, by how long"),
        longest.length ? dots(longest) : h("p", { class: "muted" }, waits?.count ? "The report has no single waits: an older Turnout has written it." : "No request had to wait."),
        longest.length && waits.count > longest.length ? h("p", { class: "muted" }, `The longest ${count(longest.length)} of ${count(waits.count)}.`) : null)));
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
