// Speaks to the control port this page came from, and to nobody else. The token is kept in this tab and sent by this script
// only: a page of another site has no way to use it.

export class Refused extends Error {
  constructor(problem, status) {
    super(problem.detail ?? `the control port answered ${status}`);
    this.problem = problem;
    this.status = status;
  }
}

let asking = null;

function askToken(why) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("login");
    document.getElementById("login-why").textContent = why;
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("token", document.getElementById("token").value.trim());
      document.getElementById("token").value = "";
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

function headers(more = {}) {
  const token = sessionStorage.getItem("token");
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function send(method, path, body, more = {}) {
  for (;;) {
    const shown = headers(body === undefined ? more : { ...more, "Content-Type": "application/json" });
    const answer = await fetch(path, { method, headers: shown, body: body === undefined ? undefined : JSON.stringify(body) });
    if (answer.status === 401) {
      await askToken((await answer.json()).detail);
      continue;
    }
    const found = answer.status === 204 ? null : await answer.json();
    if (!answer.ok) throw new Refused(found, answer.status);
    return { found, total: Number(answer.headers.get("Total-Count") ?? NaN) };
  }
}

export const get = async (path) => (await send("GET", path)).found;
export const page = (path) => send("GET", path);
export const remove = async (path) => (await send("DELETE", path)).found;
// A key of its own for each click: a request that is sent twice is done once.
export const post = async (path, body = {}) => (await send("POST", path, body, { "Idempotency-Key": crypto.randomUUID?.() ?? String(Math.random()) })).found;

// Server-sent events, read by fetch because EventSource cannot show a token.
export async function listen(onEvent, onStatus, onState) {
  let lastId = null;
  for (;;) {
    try {
      const answer = await fetch("/v1/events?status=true", { headers: headers(lastId ? { "Last-Event-ID": lastId } : {}) });
      if (!answer.ok) throw new Error(String(answer.status));
      onState(true);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const frames = text.split("\n\n");
        text = frames.pop();
        for (const frame of frames) {
          const fields = Object.fromEntries(frame.split("\n").filter((line) => line && !line.startsWith(":")).map((line) => {
            const at = line.indexOf(": ");
            return [line.slice(0, at), line.slice(at + 2)];
          }));
          if (fields.id) lastId = fields.id;
          if (fields.data) (fields.event === "status" ? onStatus : onEvent)(JSON.parse(fields.data));
        }
      }
    } catch (error) {
      console.info("events:", error.message);
    }
    onState(false);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}
