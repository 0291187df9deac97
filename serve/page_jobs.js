// Jobs: asked for, followed by their stream of events, cancelled, remembered over a reload of the page.
// A job is an item of the gallery: {id, kind: "job", state: waiting | running | failed, request, asked, ...}; when it
// is done its pictures stand in its place: {id, kind: "picture", source, address, seed, request, ...}.

import { Away, events, file, json, send, ServerError } from "./page_server.js";

const KEPT = "sote.items"; // in sessionStorage: addresses and settings, never pictures or the key
const MOST_KEPT = 100;
const PAUSES = [0.5, 1, 2, 4]; // seconds between tries while the server is away

export class Jobs {
  // `gallery` shows them; `onAway(isAway)` and `onKey(error)` tell of the server; `say` speaks to screen readers.
  constructor({ gallery, onAway, onKey, onDone, say }) {
    Object.assign(this, { gallery, onAway, onKey, onDone, say, stops: new Map() });
  }

  // Asks for a job; `asked` is what is sent, `whole` what stood in the form. Raises what the server says against it.
  async start(asked, whole) {
    const made = await json("v1/jobs", { method: "POST", body: asked });
    const { image_url: _, variation_image_urls: __, ...request } = whole; // large, and of no use afterwards
    const job = { id: made.id, kind: "job", state: "waiting", position: made.queue_position, request, asked, part: 0 };
    this.gallery.add([job]);
    this.say("Asked for");
    this.keep();
    this.follow(job);
    return job;
  }

  // Follows a job to its end, over lost connections and restarts of the server.
  async follow(job) {
    const stop = new AbortController();
    this.stops.set(job.id, stop);
    for (let tries = 0; this.stops.get(job.id) === stop; tries += 1) {
      try {
        for await (const { data } of events(`v1/jobs/${job.id}/events`, { signal: stop.signal })) {
          tries = 0;
          this.onAway(false);
          await this.take(job, data);
        }
      } catch (error) {
        if (error.name === "AbortError") return;
        await this.bear(job, error);
      }
      await pause(PAUSES[Math.min(tries, PAUSES.length - 1)]);
    }
  }

  // The server does not answer, wants a key, or does not have the job any more, which alone is its end.
  async bear(job, error) {
    if (error instanceof ServerError && error.status === 401) {
      if (!(await this.onKey(error))) this.fail(job, error.message);
    } else if (error instanceof ServerError && error.status === 404) this.fail(job, "The server has this job no more.");
    else if (error instanceof Away || error instanceof ServerError) this.onAway(true);
    else throw error;
  }

  // What the server says of a job, as the routes of /v1/jobs do.
  async take(job, said) {
    switch (said.status) {
      case "COMPLETED":
        return this.finish(job, said.result);
      case "FAILED":
        return this.fail(job, said.error.message);
      case "CANCELLED":
        return this.forget(job);
      case "IN_QUEUE":
        Object.assign(job, { state: "waiting", position: said.queue_position });
        break;
      default:
        this.advance(job, said);
    }
    this.gallery.update(job);
  }

  advance(job, { stage, step, steps, progress, preview, seconds_left: left }) {
    if (stage && stage !== job.stage) this.say(`${stage} paints`);
    Object.assign(job, { state: "running", stage, step, steps, left, part: progress ?? 0 });
    if (preview) job.preview = preview;
    document.title = `${Math.round(100 * job.part)} % · Sote`;
  }

  async finish(job, result) {
    this.stops.delete(job.id);
    const pictures = result.images.map((image, place) => ({
      id: `${job.id}-${place}`,
      kind: "picture",
      address: `v1/results/${image.url.split("/").at(-1)}`, // its host may be another by name: a proxy's
      width: image.width,
      height: image.height,
      seed: image.seed,
      seconds: result.timings.inference,
      warnings: result.warnings,
      read: result.prompt,
      name: `sote-${image.seed}.${image.content_type.split("/")[1]}`,
      request: { ...job.request, seed: image.seed, num_images: 1 },
    }));
    await Promise.all(pictures.map((picture) => this.load(picture)));
    if (!this.gallery.items.includes(job)) return; // cancelled or removed while its files came
    this.gallery.add(pictures, { inPlaceOf: job.id });
    this.say(`Done, seed ${pictures[0].seed}`);
    this.keep();
    this.onDone(pictures);
  }

  // The picture's file into memory, so that it stays when the server has let go of it.
  async load(picture) {
    try {
      picture.blob = await file(picture.address);
      picture.source = URL.createObjectURL(picture.blob);
    } catch (error) {
      if (!(error instanceof ServerError || error instanceof Away)) throw error;
      picture.gone = "The server has not kept this picture; its settings are still here.";
    }
  }

  fail(job, message) {
    this.stops.delete(job.id);
    Object.assign(job, { state: "failed", message });
    this.gallery.update(job);
    this.say(message);
    this.keep();
  }

  async cancel(job) {
    this.stops.get(job.id)?.abort();
    this.forget(job);
    this.say("Cancelled");
    try {
      await send(`v1/jobs/${job.id}`, { method: "DELETE" });
    } catch (error) {
      if (error.status !== 404) throw error; // gone already: that is what was wanted
    }
  }

  forget(item) {
    this.stops.delete(item.id);
    if (item.source) URL.revokeObjectURL(item.source);
    this.gallery.remove(item);
    this.keep();
  }

  // The newest job that still paints or waits, if there is one.
  get open() {
    return this.gallery.items.find((item) => item.kind === "job" && item.state !== "failed") ?? null;
  }

  keep() {
    if (!this.open) document.title = "Sote";
    const items = this.gallery.items.slice(0, MOST_KEPT).map(({ blob, source, preview, asked, ...rest }) => rest);
    sessionStorage.setItem(KEPT, JSON.stringify(items));
  }

  // What this tab had before it was loaded again: pictures are fetched anew, jobs followed on.
  async restore() {
    const items = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
    this.gallery.add(items);
    const last = items.find((item) => item.kind === "picture");
    if (last) this.onDone([last]);
    for (const item of items) {
      if (item.kind === "picture") this.load(item).then(() => this.gallery.update(item));
      else if (item.state !== "failed") this.follow(item);
    }
  }
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
