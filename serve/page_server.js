// Talks with the server: JSON, files, streams of events. Knows the key, which no address ever holds.

const KEY = "sote.key"; // in sessionStorage: this tab, until it is closed

// What the server said instead of an answer. `detail` is its list of {loc, msg}; `retryAfter` is seconds, or null.
export class ServerError extends Error {
  constructor(status, message, detail, retryAfter) {
    super(message);
    this.status = status;
    this.detail = detail;
    this.retryAfter = retryAfter;
  }
}

// No answer at all: the server is away, or the way to it.
export class Away extends Error {}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

// The answer to a request, if it is a good one. Addresses are relative to the page, so that it works behind a prefix.
export async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const all = new Headers(headers);
  if (key.get()) all.set("Authorization", `Bearer ${key.get()}`);
  if (body !== undefined) all.set("Content-Type", "application/json");
  let response;
  try {
    response = await fetch(path, { method, headers: all, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Away("The server cannot be reached.");
  }
  if (response.ok) return response;
  throw await errorOf(response);
}

export const json = async (path, options) => (await send(path, options)).json();

export const file = async (path, options) => (await send(path, options)).blob();

// Events of a stream: {name, data, id}, data as parsed JSON. Ends when the server ends it; throws Away if it breaks.
export async function* events(path, { signal, after } = {}) {
  const headers = { Accept: "text/event-stream", ...(after ? { "Last-Event-ID": after } : {}) };
  const response = await send(path, { headers, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r\n\r\n|\n\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const event = eventOf(block);
        if (event) yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Away("The connection broke.");
  } finally {
    reader.cancel().catch(() => {}); // the stream may be broken already: nothing is left to cancel
  }
}

function eventOf(block) {
  const event = { name: "message", data: "", id: null };
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = line.match(/^(event|data|id): ?(.*)$/) ?? [];
    if (field === "event") event.name = value;
    if (field === "id") event.id = value;
    if (field === "data") event.data += (event.data && "\n") + value;
  }
  return event.data ? { ...event, data: JSON.parse(event.data) } : null; // without data: a comment that keeps it open
}

async function errorOf(response) {
  const said = await response.json().catch(() => ({})); // a proxy's error page is no JSON
  const wait = Number.parseFloat(response.headers.get("Retry-After"));
  const detail = Array.isArray(said.detail) ? said.detail : [];
  const text = typeof said.detail === "string" ? said.detail : detail.map((item) => item.msg).join("; ");
  const message = said.message || text || `The server answered ${response.status}.`;
  return new ServerError(response.status, message, detail, Number.isFinite(wait) ? wait : null);
}
