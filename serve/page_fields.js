// The parts that the form is made of: numbers with a slider, choices, pictures that are dropped, words about errors.

// A new element; `props` are properties, `data-*` and `aria-*` attributes.
export function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Gives a number's field its range, and the slider under it. The slider is for the hand: the number has the label.
export function range(input, { min, max, step }) {
  Object.assign(input, { min, max, step });
  const slider = make("input", { type: "range", min, max, step, tabIndex: -1, "aria-hidden": "true" });
  input.after(slider);
  const follow = () => {
    slider.value = input.value;
    slider.disabled = input.disabled;
    slider.style.setProperty("--part", `${(100 * (slider.value - min)) / (max - min || 1)}%`);
  };
  slider.addEventListener("input", () => {
    input.value = slider.value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  });
  input.addEventListener("input", follow);
  input.addEventListener("follow", follow); // what a program sets makes no event of its own
  follow();
}

// Fills a select with [{name, label}].
export function choices(select, list, { none } = {}) {
  const options = list.map(({ name, label }) => make("option", { value: name, textContent: label }));
  select.replaceChildren(...(none ? [make("option", { value: "", textContent: none })] : []), ...options);
}

// Radio buttons that look like the sizes they stand for; the last is for a size of one's own.
export function sizes(place, list, { isDefault }) {
  const buttons = list.map(([width, height]) => {
    const longest = Math.max(width, height);
    const shape = make("i", { className: "shape", "aria-hidden": "true" });
    Object.assign(shape.style, { width: `${(16 * width) / longest}px`, height: `${(16 * height) / longest}px` });
    const words = [`${width}\u2009×\u2009${height}`, isDefault(width, height) ? make("small", {}, "default") : null];
    return sizeButton(`${width}x${height}`, shape, words);
  });
  const own = sizeButton("own", make("i", { className: "shape own", "aria-hidden": "true" }), ["Other"]);
  place.replaceChildren(...buttons, own);
}

function sizeButton(value, shape, words) {
  const input = make("input", { type: "radio", name: "size", value });
  return make("label", { className: "size" }, input, make("span", {}, shape, make("span", {}, ...words)));
}

// A place that takes pictures: dropped, pasted or chosen. `urls` are their data URIs.
export class Pictures {
  constructor(place, { most, bytes, onChange }) {
    Object.assign(this, { place, most, bytes, onChange, urls: [] });
    this.input = make("input", {
      type: "file",
      accept: "image/png,image/jpeg,image/webp",
      multiple: most > 1,
      "aria-labelledby": place.getAttribute("aria-labelledby"),
    });
    this.words = make("label", { className: "choose" }, this.input, make("span", {}, "Drop, paste or choose"));
    this.shown = make("div", { className: "thumbs" });
    place.append(this.shown, this.words);
    this.input.addEventListener("change", () => this.add([...this.input.files]).then(() => (this.input.value = "")));
  }

  async add(files) {
    for (const file of files.filter((one) => one.type.startsWith("image/"))) {
      const url = await dataUri(file.size > this.bytes ? await smaller(file) : file);
      this.set([...this.urls, url].slice(-this.most));
    }
  }

  set(urls) {
    this.urls = urls;
    const thumbs = urls.map((url, place) => {
      const remove = make("button", { type: "button", className: "remove", "aria-label": "Remove this picture" }, "×");
      remove.addEventListener("click", () => {
        this.set(this.urls.filter((_, other) => other !== place));
        this.input.focus();
      });
      return make("span", {}, make("img", { src: url, alt: "" }), remove);
    });
    this.shown.replaceChildren(...thumbs);
    this.onChange();
  }
}

export function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// The server reads a picture at 2,000 pixels or less: what is larger is made smaller before it is sent
async function smaller(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, 2048 / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
}

// Puts the server's words under the field that they are about; `part` is an input in it. False: no such field.
export function complain(form, field, words, part) {
  const place = form.querySelector(`[data-field="${CSS.escape(field)}"]`);
  if (!place) return false;
  place.closest("details")?.setAttribute("open", "");
  const id = `about-${field}`;
  place.append(make("p", { className: "error", id }, words));
  const inputs = [...place.querySelectorAll("input:not([type=range]), select, textarea")];
  const meant = inputs.filter((input) => input.name === part);
  for (const input of meant.length ? meant : inputs) {
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", id);
  }
  return true;
}

export function forgive(form) {
  for (const words of form.querySelectorAll(".error")) words.remove();
  for (const input of form.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  }
}
