// Form controls with labels, and the timing of redraws.

let count = 0;

/** Create an element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/**
 * Add controls to `container` and return their values.
 *
 * `spec` maps names to {label, type, value} with type "range", "number" (min, max, step),
 * "select" (choices: {value: title}, or a list of pairs) or "checkbox". `change(name)` runs after
 * each change.
 */
export function addControls(container, spec, change) {
  container.addEventListener("submit", (event) => event.preventDefault()); // by the Enter key
  const pairs = (choices) => (Array.isArray(choices) ? choices : Object.entries(choices));
  const values = {};
  const rows = {};
  for (const [name, { label, type, choices = {}, value, ...attributes }] of Object.entries(spec)) {
    const id = `control-${count++}`;
    const options = pairs(choices).map(([key, title]) => element("option", { value: key }, title));
    const input = type === "select" ? element("select", { id }, ...options) : element("input", { id, type });
    Object.assign(input, attributes, type === "checkbox" ? { checked: value } : { value });
    const shown = element("output", { htmlFor: id });
    const read = () => {
      if (type === "checkbox") values[name] = input.checked;
      else if (type === "select") values[name] = input.value;
      else values[name] = Math.min(Math.max(Number(input.value), attributes.min), attributes.max);
      if (type === "number") values[name] = Math.round(values[name]);
      if (type === "range") shown.textContent = input.value;
    };
    input.addEventListener("input", () => {
      read();
      change(name);
    });
    read();
    rows[name] = element("div", { className: "control" }, element("label", { htmlFor: id }, label), input, shown);
    rows[name].set = (number) => {
      input.value = number;
      read();
    };
    rows[name].limit = (max) => {
      input.max = attributes.max = max;
      read();
    };
    container.append(rows[name]);
  }
  return {
    values,
    /** Set a value without `change`. */
    set: (name, value) => rows[name].set(value),
    limit: (name, max) => rows[name].limit(max),
    /** Show or hide a control. */
    toggle: (name, visible) => (rows[name].hidden = !visible),
  };
}

/** Return a function that runs `action` once in the next frame, however often it is called. */
export function oncePerFrame(action) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      action();
    });
  };
}

/** Run `draw` when the size of the window or the theme changes. */
export function redrawWith(draw) {
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

/** Run `action` with each pointer position on `canvas`, in 0..1, while a button is pressed. */
export function onDrag(canvas, action) {
  const run = (event) => {
    const box = canvas.getBoundingClientRect();
    action((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    run(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && run(event));
}

/** Return a button that shows each of `positions()` in turn, or stops. */
export function playButton(positions, show) {
  const button = element("button", { type: "button" }, "Play");
  let playing = null;
  button.addEventListener("click", async () => {
    const mine = playing ? null : {};
    playing = mine;
    button.textContent = playing ? "Stop" : "Play";
    const shown = mine ? positions() : [];
    for (const position of shown) {
      await show(position);
      await new Promise((resolve) => setTimeout(resolve, Math.max(2000 / shown.length, 30)));
      if (mine !== playing) return;
    }
    playing = null;
    button.textContent = "Play";
  });
  return button;
}
