// The page of alerts: what is wrong, who is told of it, and what became of the last messages.

import { get, post } from "./api.js";
import { fill, h, moment, pill, table } from "./dom.js";
import { trouble } from "./main.js";

const TONES = { firing: "bad", pending: "warn", resolved: "good", delivered: "good", failed: "bad", dropped: "bad", waiting: "warn" };

export async function alerts(place, here) {
  const outcome = h("div", { "aria-live": "polite" });
  const test = async (name, button) => {
    button.disabled = true;
    fill(outcome, h("p", { class: "muted" }, `A test message goes to ${name} …`));
    try {
      const sent = await post(`/v1/alerts/receivers/${encodeURIComponent(name)}/test`);
      const isGood = sent.state === "delivered";
      fill(outcome, h("p", { class: `notice ${isGood ? "good" : "bad"}` }, `${name}: ${sent.state}, ${sent.outcome}`));
      await draw();
    } catch (error) {
      fill(outcome, trouble(error));
    }
    button.disabled = false;
  };
  const testButton = (one) => {
    const button = h("button", { type: "button", "aria-label": `Send a test message to ${one.name}` }, "Test");
    button.addEventListener("click", () => test(one.name, button));
    return button;
  };
  const now = h("section", { class: "card", "aria-label": "alerts now" });
  const told = h("section", { class: "card", "aria-label": "receivers" });
  const sent = h("section", { class: "card", "aria-label": "messages" });
  const draw = async () => {
    const [found, receivers, deliveries] = await Promise.all([
      get("/v1/alerts"), get("/v1/alerts/receivers"), get("/v1/alerts/deliveries?limit=20"),
    ]);
    fill(now, h("h2", {}, "What is wrong"), table([
      { name: "", of: (one) => h("span", {}, pill(one.state, TONES[one.state]), one.silenced_by === null ? null : " silenced") },
      { name: "severity", of: (one) => one.severity },
      { name: "alert", of: (one) => h("strong", {}, one.name) },
      { name: "what", of: (one) => h("span", {}, one.text, one.remedy && one.state !== "resolved" ? h("div", { class: "muted" }, one.remedy) : null) },
      { name: "since", of: (one) => moment(one.state === "resolved" ? one.resolved_at : one.fired_at || one.since) },
    ], found, "Nothing fires, and nothing did within a day."));
    fill(told, h("h2", {}, "Who is told"), table([
      { name: "receiver", of: (one) => h("strong", {}, one.name) },
      { name: "kind", of: (one) => one.kind },
      { name: "where", of: (one) => one.where },
      { name: "waiting", number: true, of: (one) => String(one.waiting) },
      { name: "delivered", number: true, of: (one) => String(one.delivered) },
      { name: "failed", number: true, of: (one) => h("span", { class: one.failed + one.dropped ? "bad" : null }, String(one.failed + one.dropped)) },
      { name: "last", of: (one) => (one.last ? h("span", { class: TONES[one.last.state] }, one.last.outcome) : "–") },
      { name: "", of: testButton },
    ], receivers, "Nobody: the config has no [alerts.receiver.NAME]."), outcome);
    fill(sent, h("h2", {}, "Last messages"), table([
      { name: "at", of: (one) => moment(one.at) },
      { name: "receiver", of: (one) => one.receiver },
      { name: "alert", of: (one) => `${one.alert.name} ${one.what}` },
      { name: "", of: (one) => pill(one.state, TONES[one.state]) },
      { name: "outcome", of: (one) => `${one.outcome}${one.tries > 1 ? ` (${one.tries} tries)` : ""}` },
    ], deliveries, "None was sent yet."));
  };
  here.heard = (event) => { if (event.kind.startsWith("alert.")) draw().catch((error) => fill(outcome, trouble(error))); };
  fill(place, h("h1", {}, "Alerts"), now, told, sent);
  await draw();
}
