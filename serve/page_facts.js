// What the server says of itself at /v1/about, as the form and the footer need it.

import { make } from "./page_fields.js";

// How far a slider moves at once, where that is not 1
const STEPS = {
  guidance_scale: 0.5, second_stage_guidance_scale: 0.5, shift: 0.1, decoder_shift: 0.1, guidance_rescale: 0.05,
  strength: 0.05, compression: 1,
};

export function factsOf(about) {
  const ranges = Object.entries(about.ranges).map(([name, range]) => [name, { ...range, step: STEPS[name] ?? 1 }]);
  return {
    about,
    defaults: about.defaults,
    tags: about.default_tags,
    ranges: Object.fromEntries(ranges),
    side: about.side,
    sizes: about.sizes.map(({ width, height }) => [width, height]),
    samplers: about.samplers,
    schedulers: about.schedulers,
    profiles: about.profiles.map(({ name }) => ({ name, label: PROFILES[name] ?? name })),
    formats: about.output_formats,
    maxPixels: about.limits.max_pixels,
    maxBytes: about.limits.max_body_bytes,
    maxVariations: about.max_variations,
    takesPictures: about.takes_pictures,
    takesVariations: about.takes_variations,
  };
}

const PROFILES = { comfy: "ComfyUI", diffusers: "diffusers" };

// The footer: model, licences and the offer of its source, which the licence of a modified model asks for.
export function foot({ about }) {
  const hash = about.model_hash ? ` (${about.model_hash.slice(0, 10)})` : "";
  const source = about.source_url
    ? make("a", { href: about.source_url, rel: "external" }, "Source of the model")
    : null;
  return [
    make("span", { title: about.model_hash ?? "" }, `Model ${about.model}${hash}`),
    make("span", {}, `Licence: ${about.licences.join("; ")}`),
    source,
    make("a", { href: "v1/about" }, "About"),
    make("a", { href: "docs" }, "API"),
    make("span", {}, `${about.software} ${about.version}`),
  ].filter(Boolean);
}
