// Jobs: asked for, followed by their stream of events, cancelled, remembered over a reload of the page.
// A job is an item of the gallery: {id, kind: "job", state: waiting | running | failed, request, asked, ...}; when it
// is done its pictures stand in its place: {id, kind: "picture", source, address, seed, request, ...}.

import { Away, events, file, json, ServerError } from "./page_server.js";

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
    const job = { id: made.id, kind: "job", state: "waiting", request, asked, part: 0 };
    this.gallery.add([job]);
    this.take(job, made);
    this.keep();
    this.follow(job);
    return job;
  }

  // Follows a job to its end, over lost connections and reloads of the server.
  async follow(job) {
    const stop = new AbortController();
    this.stops.set(job.id, stop);
    for (let tries = 0; job.kind === "job" && job.state !== "failed"; tries += 1) {
      try {
        for await (const event of events(`v1/jobs/${job.id}/events`, { signal: stop.signal })) {
          tries = 0;
          this.onAway(false);
          if (await this.take(job, event.data)) break;
        }
        if (this.stops.has(job.id)) await this.take(job, await json(`v1/jobs/${job.id}`, { signal: stop.signal }));
      } catch (error) {
        if (error.name === "AbortError") return;
        if (!(error instanceof Away) && error.status !== 401 && error.status !== 503) {
          this.fail(job, error.status === 404 ? "The server does not know this job any more." : error.message);
          return;
        }
        if (error.status === 401) await this.onKey(error);
        else this.onAway(true);
      }
      if (!this.stops.has(job.id)) return;
      await pause(PAUSES[Math.min(tries, PAUSES.length - 1)]);
    }
  }

  // What the server says of a job; true when it is over.
  async take(job, said) {
    if (!this.stops.has(job.id) && job.state !== "waiting") return true;
    switch (said.status) {
      case "COMPLETED":
        this.stops.delete(job.id);
        await this.finish(job, said.result ?? (await json(`v1/jobs/${job.id}`)).result);
        return true;
      case "FAILED":
        this.fail(job, said.error?.message ?? "The job failed.");
        return true;
      case "CANCELLED":
        this.forget(job);
        return true;
      case "IN_QUEUE":
        Object.assign(job, { state: "waiting", position: said.queue_position });
        break;
      default:
        this.advance(job, said);
    }
    this.gallery.update(job);
    return false;
  }

  advance(job, said) {
    const { stage, step, steps, preview } = said.progress ?? said;
    const isNew = stage && stage !== job.stage;
    job.state = "running";
    if (stage) {
      const [first, second] = [job.request.first_stage_steps, job.request.second_stage_steps];
      const done = stage === "prior" ? step : first + step;
      Object.assign(job, { stage, step, steps, part: done / (first + second) });
    }
    if (preview) job.preview = preview.startsWith("data:") ? preview : `data:image/jpeg;base64,${preview}`;
    if (isNew) this.say(`${stage} paints`);
  }

  async finish(job, result) {
    const pictures = result.images.map((image, place) => ({
      id: `${job.id}-${place}`,
      kind: "picture",
      address: image.url,
      width: image.width,
      height: image.height,
      seed: image.seed,
      seconds: result.timings?.total ?? null,
      warnings: result.warnings,
      name: `sote-${image.seed}.${image.content_type.split("/")[1]}`,
      request: { ...job.request, prompt: job.request.prompt, seed: image.seed, num_images: 1 },
    }));
    await Promise.all(pictures.map((picture) => this.load(picture)));
    this.gallery.add(pictures, { inPlaceOf: job.id });
    this.say(`Done: seed ${pictures[0].seed}`);
    this.keep();
    this.onDone(pictures);
  }

  // The picture's file into memory, so that it stays when the server has let go of it.
  async load(picture) {
    try {
      picture.source = URL.createObjectURL(await file(picture.address));
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
    await json(`v1/jobs/${job.id}`, { method: "DELETE" });
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
    const items = this.gallery.items.slice(0, MOST_KEPT).map(({ source, preview, asked, ...rest }) => rest);
    sessionStorage.setItem(KEPT, JSON.stringify(items));
  }

  // What this tab had before it was loaded again: pictures are fetched anew, jobs followed on.
  async restore() {
    const items = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
    this.gallery.add(items);
    for (const item of items) {
      if (item.kind === "picture") this.load(item).then(() => this.gallery.update(item));
      else if (item.state !== "failed") this.follow(item);
    }
  }
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
