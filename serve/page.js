// The page: asks the server what it is, builds the form from that, and ties form, jobs and gallery together.

import { dataUri, make } from "./page_fields.js";
import { factsOf, foot } from "./page_facts.js";
import { Form } from "./page_form.js";
import { Gallery } from "./page_gallery.js";
import { Jobs } from "./page_jobs.js";
import { isParameters, linkOf, requestOf, requestOfLink, textOf } from "./page_parameters.js";
import { Away, json, key, ServerError } from "./page_server.js";

const at = (id) => document.getElementById(id);
const say = (words) => (at("said").textContent = words);

// --- what the server says against it

let waiting = null; // the clock of a 429

function showProblem(words, { retry, seconds } = {}) {
  clearInterval(waiting);
  const place = at("problem");
  place.hidden = !words;
  place.replaceChildren(make("p", {}, words));
  if (!retry) return;
  const button = make("button", { type: "button", className: "plain" }, "Try again");
  button.addEventListener("click", retry);
  place.append(button);
  const end = Date.now() + 1000 * (seconds ?? 0);
  const tick = () => {
    const left = Math.ceil((end - Date.now()) / 1000);
    button.textContent = left > 0 ? `Try again, best in ${left} s` : "Try again";
    if (left <= 0) clearInterval(waiting);
  };
  tick();
  waiting = setInterval(tick, 500);
}

function onAway(isAway) {
  at("notice").hidden = !isAway;
  at("notice").textContent = isAway ? "The server is away; trying again." : "";
}

// Asks for the key; true when one was given. Several who ask at once get one answer.
let asking = null;
function onKey(error) {
  asking ??= new Promise((resolve) => {
    const dialog = at("key-dialog");
    at("key-words").textContent = error?.message ?? "";
    at("key").value = "";
    dialog.returnValue = "";
    const close = () => {
      const given = dialog.returnValue === "use" ? at("key").value.trim() : "";
      if (given) key.set(given);
      asking = null;
      resolve(Boolean(given));
    };
    dialog.addEventListener("close", close, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function refused(error, form, again) {
  if (error.status === 401 && (await onKey(error))) return again();
  if (error instanceof ServerError && error.status === 429) {
    return showProblem(error.message, { retry: again, seconds: error.retryAfter });
  }
  if (error instanceof ServerError) return showProblem(form.complain(error));
  if (error instanceof Away) return showProblem(error.message, { retry: again });
  throw error;
}

// --- from the form to the gallery

class Page {
  constructor(facts) {
    this.facts = facts;
    const labels = Object.fromEntries(facts.samplers.map(({ name, label }) => [name, label]));
    const actions = {
      use: (item) => this.use(item.request),
      seed: (item) => this.form.put("seed", item.seed),
      start: (item) => this.useAsPicture(item, this.form.start),
      vary: (item) => this.useAsPicture(item, this.form.variations),
      copy: (item, button) => this.copy(item, button),
      link: (item, button) => copied(new URL(`#${linkOf(item.request)}`, location.href).href, button),
      remove: (item) => this.jobs.forget(item),
      cancel: (item) => this.cancel(item),
      again: (item) => this.again(item),
    };
    if (!facts.takesPictures) delete actions.start; // no encoder among the weights
    if (!facts.takesVariations) delete actions.vary;
    this.gallery = new Gallery(actions, labels);
    this.form = new Form(at("form"), facts);
    const onDone = (pictures) => this.remember(pictures[0].seed);
    this.jobs = new Jobs({ gallery: this.gallery, onAway, onKey, onDone, say });
    this.listen();
    this.fillFromLink();
    this.jobs.restore();
  }

  listen() {
    const form = at("form");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.paint();
    });
    at("reset").addEventListener("click", () => this.form.fill({ prompt: form.elements.prompt.value }));
    at("seed-random").addEventListener("click", () => this.form.put("seed", ""));
    at("seed-last").addEventListener("click", () => this.form.put("seed", this.lastSeed));
    document.addEventListener("keydown", (event) => this.press(event));
    window.addEventListener("hashchange", () => this.fillFromLink());
    document.addEventListener("paste", (event) => this.paste(event));
    for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, (event) => this.drag(event));
  }

  press(event) {
    if (document.querySelector("dialog[open]")) return; // it has keys of its own
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.paint();
    } else if (event.key === "Escape" && this.open) {
      event.preventDefault();
      this.cancel(this.open);
    }
  }

  // What Escape cancels: the job on the easel, else the newest one
  get open() {
    const { item } = this.gallery;
    return item?.kind === "job" && item.state !== "failed" ? item : this.jobs.open;
  }

  paint() {
    return this.ask(this.form.request(), this.form.whole());
  }

  again(item) {
    this.jobs.forget(item);
    return this.ask(item.asked ?? item.request, item.request);
  }

  async ask(asked, whole) {
    showProblem("");
    this.form.forgive();
    try {
      await this.jobs.start(asked, { ...this.facts.defaults, ...whole });
      onAway(false);
      if (matchMedia("(max-width: 859px)").matches) at("stage").scrollIntoView({ block: "start" });
    } catch (error) {
      await refused(error, this.form, () => this.ask(asked, whole));
    }
  }

  cancel(item) {
    return this.jobs.cancel(item).catch((error) => refused(error, this.form, () => this.jobs.cancel(item)));
  }

  remember(seed) {
    this.lastSeed = seed;
    at("seed-last").disabled = false;
    at("seed-last").title = `${seed}`;
  }

  use(request) {
    this.form.fill(request);
    say("The settings stand in the form");
  }

  async useAsPicture(item, pictures) {
    at("fold-pictures").open = true;
    await pictures.add([item.blob]);
    pictures.place.scrollIntoView({ block: "nearest" });
  }

  async copy(item, button) {
    await copied((await parametersOf(item.blob)) ?? linkOf(item.request), button);
  }

  // --- what comes from outside: links, pasted text and pictures, dropped files

  fillFromLink() {
    if (location.hash.length > 1) this.form.fill(requestOfLink(location.hash.slice(1), this.facts.defaults));
  }

  paste(event) {
    const files = [...event.clipboardData.files];
    const text = event.clipboardData.getData("text/plain");
    if (files.length) {
      event.preventDefault();
      this.takeAsPicture(files, event.target);
    } else if (isParameters(text) && event.target.name === "prompt") {
      event.preventDefault();
      this.use(requestOf(text, this.facts));
    }
  }

  drag(event) {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    const drop = event.target.closest?.(".drop");
    document.body.classList.toggle("is-dropping", event.type === "dragover" && !drop);
    for (const one of document.querySelectorAll(".drop")) {
      one.classList.toggle("is-over", event.type === "dragover" && one === drop);
    }
    if (event.type !== "drop") return;
    const files = [...event.dataTransfer.files];
    if (drop) this.takeAsPicture(files, drop);
    else this.takeAsSettings(files);
  }

  // A picture onto the page is its settings; one without any is a picture to start from.
  async takeAsSettings(files) {
    const text = files.length ? await parametersOf(files[0]) : null;
    if (text) this.use(requestOf(text, this.facts));
    else this.takeAsPicture(files, null);
  }

  async takeAsPicture(files, target) {
    const isVariation = Boolean(target?.closest?.("#variations"));
    if (!isVariation && !this.facts.takesPictures) {
      return showProblem("The file carries no settings, and this server has no encoder to start from a picture.");
    }
    at("fold-pictures").open = true;
    await (isVariation ? this.form.variations : this.form.start).add(files);
  }
}

// The parameters in a picture's file, or null; those of JPEG and WebP the server reads.
async function parametersOf(blob) {
  const text = await textOf(blob);
  if (text !== null || blob.type === "image/png") return text;
  try {
    const image = (await dataUri(blob)).split(",")[1];
    return (await json("sdapi/v1/png-info", { method: "POST", body: { image } })).info || null;
  } catch (error) {
    if (error instanceof ServerError) return null; // a file that is no picture, or one without parameters
    throw error;
  }
}

// Into the clipboard; where the browser lends none (no https), into a box to copy from.
async function copied(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    const words = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = words), 1500);
  } catch {
    at("text-shown").value = text;
    at("text-dialog").showModal();
    at("text-shown").select();
  }
}

async function start() {
  at("key-later").addEventListener("click", () => at("key-dialog").close());
  at("key-open").addEventListener("click", () => {
    key.set("");
    onKey();
  });
  for (let pause = 500; ; pause = Math.min(2 * pause, 5000)) {
    try {
      const about = await json("v1/about");
      const facts = factsOf(about);
      onAway(false);
      at("model").textContent = about.model;
      at("key-open").hidden = !about.needs_key;
      at("about").replaceChildren(...foot(facts));
      new Page(facts);
      return;
    } catch (error) {
      if (!(error instanceof Away || error instanceof ServerError)) throw error;
      if (error.status === 401) await onKey(error);
      else onAway(true);
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
}

start();
