// The parameters that a picture's file carries, in AUTOMATIC1111's form, and the request that they stand for.

const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

// The `parameters` text of a PNG, or null. tEXt is Latin-1, iTXt is UTF-8 and may be compressed (PNG 1.2, 4.2.3).
export async function textOf(blob) {
  const data = new Uint8Array(await blob.arrayBuffer());
  if (!PNG.every((byte, place) => data[place] === byte)) return null;
  const view = new DataView(data.buffer);
  for (let at = 8; at + 12 <= data.length; ) {
    const length = view.getUint32(at);
    const kind = latin1(data.subarray(at + 4, at + 8));
    if (kind === "IEND") break;
    const body = data.subarray(at + 8, at + 8 + length);
    if (latin1(body.subarray(0, 11)) === "parameters\0") {
      if (kind === "tEXt") return latin1(body.subarray(11));
      if (kind === "iTXt") return international(body.subarray(11));
    }
    at += 12 + length;
  }
  return null;
}

// Whether a text is what a picture carries, rather than a prompt.
export const isParameters = (text) => /(^|\n)Steps: \d+, /.test(text);

// The request of such a text, with the API's field names; what the server does not know is left out.
// `samplers` and `schedulers` are [{name, label}], as the server lists them.
export function requestOf(text, { samplers, schedulers }) {
  const lines = text.trim().split("\n");
  const last = lines.findLastIndex((line) => /^Steps: \d+/.test(line));
  const pairs = last < 0 ? {} : pairsOf(lines.slice(last).join("\n"));
  const words = (last < 0 ? lines : lines.slice(0, last)).join("\n");
  const [prompt, negative = ""] = words.split(/(?:^|\n)Negative prompt: ?/);
  const request = { prompt: prompt.trim(), negative_prompt: negative.trim(), use_default_tags: false };
  if (last >= 0) request.weights = pairs["Emphasis"] !== "None";
  for (const [field, name] of Object.entries(NUMBERS)) {
    const value = Number.parseFloat(pairs[name]);
    if (Number.isFinite(value)) request[field] = value;
  }
  const [, width, height] = pairs["Size"]?.match(/^(\d+)x(\d+)$/) ?? [];
  if (width) request.image_size = { width: Number(width), height: Number(height) };
  for (const [field, name, grid, gridName] of SAMPLERS) {
    const found = samplerOf(pairs[name] ?? "", samplers, schedulers);
    const scheduler = named(pairs[gridName] ?? "", schedulers) ?? found.scheduler;
    if (found.sampler) request[field] = found.sampler;
    if (scheduler) request[grid] = scheduler;
  }
  const profile = pairs["Profile"];
  return profile ? { ...withoutGrid(request), profile } : request;
}

// Settings as the fragment of an address, which browsers do not send; pictures are left out.
export function linkOf(request) {
  const { image_url: _, variation_image_urls: __, image_size: size, ...rest } = request;
  const pairs = Object.entries({ ...rest, image_size: `${size.width}x${size.height}` });
  return new URLSearchParams(pairs.filter(([, value]) => value !== null && value !== undefined)).toString();
}

// The request of such a fragment; each value has the type that the server's own has, unknown names are left out.
export function requestOfLink(fragment, defaults) {
  const request = {};
  for (const [name, text] of new URLSearchParams(fragment)) {
    const [, width, height] = text.match(/^(\d{1,5})x(\d{1,5})$/) ?? [];
    if (name === "image_size") {
      if (width) request.image_size = { width: Number(width), height: Number(height) };
    } else if (typeof defaults[name] === "boolean") request[name] = text === "true";
    else if (typeof defaults[name] === "number" || name === "seed") request[name] = Number(text);
    else if (["prompt", "profile"].includes(name) || name in defaults) request[name] = text;
  }
  return request;
}

// Field of the API -> name in the text
const NUMBERS = {
  first_stage_steps: "Steps",
  guidance_scale: "CFG scale",
  seed: "Seed",
  shift: "Shift",
  compression: "Compression",
  guidance_rescale: "Guidance rescale",
  strength: "Denoising strength",
  second_stage_steps: "Decoder steps",
  second_stage_guidance_scale: "Decoder CFG scale",
  decoder_shift: "Decoder shift",
};
const SAMPLERS = [
  ["sampler", "Sampler", "scheduler", "Schedule type"],
  ["decoder_sampler", "Decoder sampler", "decoder_scheduler", "Decoder schedule type"],
];

function pairsOf(line) {
  const pairs = {};
  for (const [, name, quoted, plain] of line.matchAll(/\s*([\w .\-/]+): ("(?:\\.|[^\\"])*"|)([^,]*)(?:,|$)/g)) {
    pairs[name.trim()] = quoted ? unquoted(quoted) : plain.trim();
  }
  return pairs;
}

function unquoted(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text; // another program's quotes: the text as it stands
  }
}

// "DPM++ 2M Karras", as older versions write both in one
function samplerOf(text, samplers, schedulers) {
  const whole = named(text, samplers);
  if (whole) return { sampler: whole, scheduler: null };
  for (const { name, label } of schedulers) {
    if (!plain(text).endsWith(`_${plain(label)}`)) continue;
    const sampler = named(text.slice(0, -label.length), samplers);
    if (sampler) return { sampler, scheduler: name };
  }
  return { sampler: null, scheduler: null };
}

function named(text, list) {
  const wanted = plain(text);
  return list.find(({ name, label }) => wanted && [plain(name), plain(label)].includes(wanted))?.name ?? null;
}

const plain = (text) => text.trim().toLowerCase().replace(/[\s_-]+/g, "_");

function withoutGrid(request) {
  const { scheduler, shift, decoder_scheduler, decoder_shift, ...rest } = request; // a profile fixes these
  return rest;
}

function latin1(bytes) {
  return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
}

async function international(body) {
  const isCompressed = body[0] === 1;
  let at = 2; // past the flag and the method; then language and translated keyword, each ended by a zero
  for (let zeros = 0; zeros < 2; at += 1) zeros += body[at] === 0 ? 1 : 0;
  const bytes = body.subarray(at);
  if (!isCompressed) return new TextDecoder().decode(bytes);
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(inflated).text();
}
