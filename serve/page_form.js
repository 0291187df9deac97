// The form: built from the server's facts, read as a request, filled from one.

import { choices, complain, forgive, make, Pictures, range, sizes } from "./page_fields.js";

const NUMBERS = [
  "first_stage_steps", "guidance_scale", "num_images", "second_stage_steps", "second_stage_guidance_scale",
  "shift", "decoder_shift", "guidance_rescale", "compression", "strength",
];
const CHOICES = ["sampler", "scheduler", "decoder_sampler", "decoder_scheduler", "profile", "output_format"];
const SWITCHES = ["use_default_tags", "weights"];
const FIXED = ["scheduler", "shift", "decoder_scheduler", "decoder_shift"]; // by a profile
const STRENGTH = 0.75; // the API's own, where a picture is given without it
// Sizes worth a button beside the server's presets: the model's own two and what lies between
const SIZES = [[1024, 1536], [1536, 1024], [1024, 1024], [2048, 1152], [1152, 2048], [768, 1024], [1024, 768]];

export class Form {
  // `facts`: see page_facts.js. `onChange` is called whenever what will be read changes.
  constructor(element, facts) {
    Object.assign(this, { element, facts, fields: element.elements });
    this.build();
    this.fill({});
    element.addEventListener("input", () => this.refresh());
  }

  build() {
    const { facts, fields, element } = this;
    for (const name of NUMBERS) range(fields[name], facts.ranges[name]);
    for (const name of ["sampler", "decoder_sampler"]) choices(fields[name], facts.samplers);
    for (const name of ["scheduler", "decoder_scheduler"]) choices(fields[name], facts.schedulers);
    choices(fields.profile, facts.profiles, { none: facts.defaults.profile ? null : "itself" });
    choices(fields.output_format, facts.formats);
    const { width, height } = facts.defaults.image_size;
    const known = [[width, height], ...SIZES, ...facts.sizes].filter(([w, h]) => w * h <= facts.maxPixels);
    const each = [...new Map(known.map((pair) => [pair.join("x"), pair])).values()];
    sizes(element.querySelector("#sizes"), each, { isDefault: (w, h) => w === width && h === height });
    for (const name of ["width", "height"]) Object.assign(fields[name], facts.side);
    const bytes = facts.maxBytes / 4; // base64 takes a third more, and there may be several
    const onChange = () => this.refresh();
    this.start = new Pictures(element.querySelector("#start"), { most: 1, bytes, onChange });
    element.querySelector("[data-field=image_url]").hidden = !facts.takesPictures;
    element.querySelector("[data-field=strength]").hidden = !facts.takesPictures;
    element.querySelector("[data-field=variation_image_urls]").hidden = !facts.takesVariations;
    element.querySelector("#fold-pictures").hidden = !facts.takesPictures && !facts.takesVariations;
    const most = facts.maxVariations;
    this.variations = new Pictures(element.querySelector("#variations"), { most, bytes, onChange });
  }

  // What is asked for: only what differs from the server's own settings, so that those stay the server's.
  request() {
    const whole = this.whole();
    const own = Object.entries(whole).filter(([name, value]) => !same(value, this.facts.defaults[name]));
    return { prompt: whole.prompt, ...Object.fromEntries(own) };
  }

  // Everything that stands in the form, fields that have no meaning now left out.
  whole() {
    const { fields } = this;
    const request = { prompt: fields.prompt.value, negative_prompt: fields.negative_prompt.value };
    for (const name of SWITCHES) request[name] = fields[name].checked;
    for (const name of CHOICES) if (!fields[name].disabled && fields[name].value) request[name] = fields[name].value;
    for (const name of NUMBERS) if (!fields[name].disabled) put(request, name, fields[name]);
    put(request, "seed", fields.seed);
    request.image_size = this.size();
    if (this.start.urls.length) request.image_url = this.start.urls[0];
    if (this.variations.urls.length) request.variation_image_urls = this.variations.urls;
    return request;
  }

  size() {
    const { size, width, height } = this.fields;
    const [w, h] = size.value === "own" ? [width.value, height.value] : size.value.split("x");
    return { width: number(w), height: number(h) };
  }

  // Sets what `request` names; everything else as the server has it. Pictures stay where the request says nothing.
  fill(request) {
    const { fields, facts } = this;
    const all = { strength: STRENGTH, seed: "", profile: "", ...facts.defaults, ...request };
    const named = ["prompt", "negative_prompt", "seed", ...NUMBERS, ...CHOICES];
    for (const name of named) fields[name].value = all[name] ?? "";
    for (const name of SWITCHES) fields[name].checked = Boolean(all[name]);
    const { width, height } = all.image_size;
    const buttons = [...this.element.querySelectorAll("#sizes input")];
    (buttons.find((one) => one.value === `${width}x${height}`) ?? buttons.at(-1)).checked = true;
    Object.assign(fields.width, { value: width });
    Object.assign(fields.height, { value: height });
    if (request.image_url) this.start.set([request.image_url]);
    if (request.variation_image_urls) this.variations.set(request.variation_image_urls);
    forgive(this.element);
    this.refresh();
  }

  // One field, without touching the others.
  put(name, value) {
    this.fields[name].value = value;
    this.refresh();
  }

  refresh() {
    const { fields } = this;
    const isOwn = fields.size.value === "own";
    this.element.querySelector("#own-size").hidden = !isOwn;
    fields.width.disabled = fields.height.disabled = !isOwn;
    for (const name of FIXED) fields[name].disabled = fields.profile.value !== "";
    fields.strength.disabled = this.start.urls.length === 0;
    for (const name of NUMBERS) fields[name].dispatchEvent(new Event("follow"));
    this.showWhole();
  }

  // The whole prompts as the model will read them, the server's tags told apart
  showWhole() {
    const { fields, facts, element } = this;
    const place = element.querySelector("#whole");
    place.hidden = !fields.use_default_tags.checked;
    const words = [["prompt", "positive", facts.tags.positive], ["negative_prompt", "negative", facts.tags.negative]];
    for (const [name, id, tags] of words) {
      const before = tags.trim().replace(/,$/, "");
      const own = fields[name].value;
      const parts = [before && make("em", {}, before), before && own && ", ", own].filter(Boolean);
      element.querySelector(`#whole-${id}`).replaceChildren(...(parts.length ? parts : ["nothing"]));
    }
  }

  // Puts each of the server's complaints at its field; returns those that belong to none.
  complain(error) {
    forgive(this.element);
    const rest = error.detail.filter((item) => {
      const place = item.loc.map(String).filter((step) => step !== "body");
      return !complain(this.element, place[0] ?? "", item.msg, place.at(-1));
    });
    this.element.querySelector("[aria-invalid]")?.focus();
    return rest.length || !error.detail.length ? error.message : "";
  }

  forgive() {
    forgive(this.element);
  }
}

function put(request, name, input) {
  const text = input.value.trim();
  if (text !== "" || input.validity.badInput) request[name] = input.validity.badInput ? "no number" : number(text);
}

// A number where it is one; what is not goes to the server as it stands, which says what is wrong
function number(text) {
  const value = Number(text);
  return text !== "" && Number.isFinite(value) ? value : text;
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
