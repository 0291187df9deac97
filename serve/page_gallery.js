// The session's pictures: a strip of tiles, one of them large on the easel, and larger still in the lightbox.
// An item is a job that paints, or a picture; {id, kind, request, ...}, see page_jobs.js.

import { make } from "./page_fields.js";

export class Gallery {
  // `actions` maps the names of what can be done with an item to functions of it, `labels` samplers to their names.
  constructor(actions, labels) {
    Object.assign(this, { actions, labels, items: [], chosen: null, tiles: new Map() });
    for (const id of ["easel", "caption", "strip", "lightbox", "stage"]) this[id] = document.getElementById(id);
    const focus = () => this.tiles.get(this.chosen).button.focus();
    this.strip.addEventListener("keydown", (event) => this.walk(event, focus));
    this.lightbox.addEventListener("keydown", (event) => this.walk(event, () => this.enlarge()));
    this.lightbox.querySelector(".close").addEventListener("click", () => this.lightbox.close());
    this.lightbox.querySelector(".before").addEventListener("click", () => this.step(-1) && this.enlarge());
    this.lightbox.querySelector(".after").addEventListener("click", () => this.step(1) && this.enlarge());
    this.lightbox.addEventListener("click", (event) => event.target === this.lightbox && this.lightbox.close());
    this.lightbox.addEventListener("close", () => this.easel.querySelector("button")?.focus());
    this.show();
  }

  get item() {
    return this.items.find((one) => one.id === this.chosen) ?? null;
  }

  // Adds items before all others, or in place of the job that made them; the first is chosen if the place was.
  add(items, { inPlaceOf } = {}) {
    const place = this.items.findIndex((one) => one.id === inPlaceOf);
    const wasChosen = inPlaceOf === undefined || this.chosen === inPlaceOf || this.item === null;
    this.items.splice(Math.max(place, 0), place < 0 ? 0 : 1, ...items);
    if (wasChosen && items.length) this.chosen = items[0].id;
    this.show();
  }

  remove(item) {
    const place = this.items.indexOf(item);
    this.items = this.items.filter((one) => one !== item);
    if (this.chosen === item.id) this.chosen = (this.items[place] ?? this.items.at(-1))?.id ?? null;
    this.show();
  }

  choose(id) {
    this.chosen = id;
    this.show();
  }

  // Draws what has changed of one item.
  update(item) {
    this.tiles.get(item.id)?.update(item);
    if (item.id === this.chosen) this.showChosen();
  }

  show() {
    for (const [id, tile] of this.tiles) if (!this.items.some((one) => one.id === id)) this.drop(id, tile);
    this.items.forEach((item, place) => {
      if (!this.tiles.has(item.id)) this.tiles.set(item.id, new Tile(() => this.choose(item.id)));
      const tile = this.tiles.get(item.id);
      tile.update(item);
      tile.choose(item.id === this.chosen);
      const there = this.strip.children[place];
      if (there !== tile.element) this.strip.insertBefore(tile.element, there ?? null);
    });
    document.body.classList.toggle("has-pictures", this.items.length > 0);
    this.showChosen();
  }

  drop(id, tile) {
    tile.element.remove();
    this.tiles.delete(id);
  }

  showChosen() {
    const { item, easel, caption } = this;
    if (!item) {
      easel.dataset.item = "";
      easel.replaceChildren(make("p", { className: "empty" }, "What you paint appears here."));
      caption.replaceChildren();
      return;
    }
    const isPicture = item.kind === "picture";
    const source = isPicture ? item.source : item.preview;
    if (easel.dataset.item !== item.id) this.mount(item);
    const frame = easel.querySelector(".frame");
    frame.classList.toggle("is-painting", !isPicture && item.state !== "failed");
    frame.classList.toggle("is-failed", item.state === "failed");
    if (source) show(frame.querySelector("img"), source);
    frame.querySelector(".words").textContent = source ? "" : wordsOf(item);
    this.describe(item);
  }

  mount(item) {
    const { width, height } = sizeOf(item);
    const image = make("img", { alt: item.kind === "picture" ? item.request.prompt : "", hidden: true });
    const words = make("span", { className: "words" });
    const tag = item.kind === "picture" ? "button" : "div";
    const frame = make(tag, { className: "frame" }, image, words);
    if (tag === "button") {
      Object.assign(frame, { type: "button", title: "Larger" });
      frame.setAttribute("aria-label", `Picture with seed ${item.seed}, show it larger`);
      frame.addEventListener("click", () => this.enlarge());
    }
    frame.style.setProperty("--ratio", `${width / height}`);
    frame.style.setProperty("--width", `${width}px`);
    this.easel.dataset.item = item.id;
    this.easel.replaceChildren(frame);
    this.caption.dataset.item = "";
  }

  // The caption is built once for an item in a state, then only its numbers move: focus stays on its buttons
  describe(item) {
    const { caption } = this;
    const face = `${item.id} ${item.state ?? ""} ${item.source ?? ""}`;
    if (caption.dataset.item !== face) {
      caption.dataset.item = face;
      caption.replaceChildren(...(item.kind === "picture" ? this.ofPicture(item) : this.ofJob(item)));
    }
    if (item.kind === "job" && item.state !== "failed") {
      caption.querySelector(".now").textContent = wordsOf(item);
      const bar = caption.querySelector("progress");
      if (item.state === "running") bar.value = item.part;
      else bar.removeAttribute("value");
    }
  }

  ofPicture(item) {
    const { request } = item;
    const seconds = item.seconds ? `${item.seconds.toFixed(1)} s` : "";
    const details = detailsOf({ ...request, sampler: this.labels[request.sampler] });
    const facts = [`${item.width} × ${item.height}`, `seed ${item.seed}`, ...details, seconds];
    const notes = (item.warnings ?? []).map((words) => make("p", { className: "note" }, words));
    const links = item.source
      ? [make("a", { className: "button accent", href: item.source, download: item.name }, "Download")]
      : [];
    const wanted = ["use", "seed", ...(item.source ? ["start", "vary", "copy"] : []), "link", "remove"];
    const names = wanted.filter((name) => name in this.actions);
    return [
      make("p", { className: "prompt", title: item.read }, item.read),
      make("p", { className: "facts" }, ...facts.filter(Boolean).map((text) => make("span", {}, text))),
      ...notes,
      make("p", { className: "actions" }, ...links, ...names.map((name) => this.button(name, item))),
    ];
  }

  ofJob(item) {
    const prompt = make("p", { className: "prompt", title: item.request.prompt }, item.request.prompt);
    if (item.state === "failed") {
      const buttons = [this.button("again", item), this.button("use", item), this.button("remove", item)];
      return [prompt, make("p", { className: "error" }, item.message), make("p", { className: "actions" }, ...buttons)];
    }
    const bar = make("progress", { max: 1, "aria-label": "Progress" });
    const now = make("span", { className: "now" });
    return [prompt, bar, make("p", { className: "actions" }, now, this.button("cancel", item))];
  }

  button(name, item) {
    const button = make("button", { type: "button", className: "plain", "data-action": name }, WORDS[name]);
    button.addEventListener("click", () => this.actions[name](item, button));
    return button;
  }

  enlarge() {
    const { item, lightbox } = this;
    if (item?.kind !== "picture" || !item.source) return lightbox.close();
    const image = lightbox.querySelector("img");
    Object.assign(image, { src: item.source, alt: item.request.prompt });
    if (!lightbox.open) lightbox.showModal();
  }

  walk(event, after) {
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const to = { Home: 0, End: this.items.length - 1 }[event.key];
    if ((by === undefined && to === undefined) || !this.items.length) return;
    event.preventDefault();
    if (by === undefined) this.choose(this.items[to].id);
    else this.step(by);
    after();
  }

  // To the next item, or in the lightbox the next picture; false at the end.
  step(by) {
    const list = this.lightbox.open ? this.items.filter((one) => one.source && one.kind === "picture") : this.items;
    const next = list[list.findIndex((one) => one.id === this.chosen) + by];
    if (next) this.choose(next.id);
    return Boolean(next);
  }
}

const WORDS = {
  use: "Use settings", seed: "Reuse seed", start: "Paint over", vary: "Vary", copy: "Copy settings", link: "Copy link",
  remove: "Remove", cancel: "Cancel", again: "Try again",
};

class Tile {
  constructor(onClick) {
    this.image = make("img", { alt: "", hidden: true });
    this.words = make("span", { className: "words" });
    this.button = make("button", { type: "button", className: "tile" }, this.image, this.words);
    this.element = make("li", {}, this.button);
    this.button.addEventListener("click", onClick);
  }

  update(item) {
    const { width, height } = sizeOf(item);
    const source = item.kind === "picture" ? item.source : item.preview;
    const isPainting = item.kind === "job" && item.state !== "failed";
    this.button.style.setProperty("--ratio", `${width / height}`);
    this.button.style.setProperty("--done", `${100 * (item.part ?? 0)}%`);
    this.button.classList.toggle("is-painting", isPainting);
    this.button.classList.toggle("is-failed", item.state === "failed");
    this.button.setAttribute("aria-label", labelOf(item));
    if (source) show(this.image, source);
    this.words.textContent = source ? "" : item.state === "failed" ? "!" : "…";
  }

  choose(isChosen) {
    this.button.tabIndex = isChosen ? 0 : -1; // one stop of the tab key for the whole strip; arrows walk in it
    if (isChosen) this.button.setAttribute("aria-current", "true");
    else this.button.removeAttribute("aria-current");
  }
}

// Sets the picture when it can be drawn at once: no flicker between previews
function show(image, source) {
  if (image.dataset.source === source) return;
  image.dataset.source = source;
  const next = new Image();
  next.src = source;
  const swap = () => {
    if (image.dataset.source === source) Object.assign(image, { src: source, hidden: false });
  };
  next.decode().then(swap, swap); // what cannot be decoded is shown as the browser shows such
}

function wordsOf(item) {
  if (item.kind === "picture") return item.gone ?? "";
  if (item.state === "failed") return item.message;
  if (item.state === "waiting") return item.position ? `Waiting, ${item.position} before it` : "Waiting, next in line";
  if (!item.stage) return "Starting";
  const left = item.left ? `, about ${Math.ceil(item.left)} s left` : "";
  return `${STAGES[item.stage]}, step ${item.step} of ${item.steps}${left}`;
}

const STAGES = { prior: "Prior", decoder: "Decoder" };

function labelOf(item) {
  if (item.kind === "picture") return `Picture with seed ${item.seed}`;
  return item.state === "failed" ? `Failed: ${item.message}` : `Painting: ${wordsOf(item)}`;
}

const sizeOf = (item) => (item.width ? item : item.request.image_size);

function detailsOf(request) {
  const { first_stage_steps: prior, second_stage_steps: decoder, guidance_scale: guidance, profile, sampler } = request;
  return [`${prior} + ${decoder} steps`, `CFG ${guidance}`, profile ? `as ${profile}` : sampler];
}
