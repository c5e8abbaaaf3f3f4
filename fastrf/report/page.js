"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const axes = data.axes.length;
  const bounded = data.inputSize !== null;

  // --- units, boxes, pictures -----------------------------------------------------------------

  // First and last pixel of a unit's box along an axis; null where it sees nothing.
  function ends(layer, axis, unit, jumps = layer.ends[axis]) {
    let first = Infinity;
    let last = -Infinity;
    for (const [advance, firsts, lasts] of jumps) {
      if (firsts === null) return [-Infinity, Infinity];
      const turn = Math.floor(unit / firsts.length);
      const phase = unit - turn * firsts.length;
      if (firsts[phase] === null) continue;
      first = Math.min(first, firsts[phase] + advance * turn);
      last = Math.max(last, lasts[phase] + advance * turn);
    }
    return first > last ? null : [first, last];
  }

  function box(layer, unit) {
    const found = unit.map((u, axis) => ends(layer, axis, u));
    return found.includes(null) ? null : found;
  }

  const moving = (layer, axis) => layer.ends[axis].filter(([advance]) => advance > 0);
  const stride = (layer, axis) => {
    const found = moving(layer, axis).map(([advance, firsts]) => advance / firsts.length);
    if (found.length) return Math.max(...found);
    return bounded && layer.shape ? data.inputSize[axis] / layer.shape[axis] : 1;
  };

  // Where a unit is drawn: at the middle of its box, in a decoder of its regular grid; where paths
  // of several strides meet, at the middle of what moves with the unit.
  function center(layer, axis, unit) {
    const jumps = moving(layer, axis);
    if (jumps.length === 1) return gridCenter(jumps[0]) + unit * stride(layer, axis);
    const found = ends(layer, axis, unit, jumps);
    if (found) return (found[0] + found[1]) / 2;
    return stride(layer, axis) * (unit + 0.5) - 0.5;
  }

  // The middle of unit 0's box, the mean over the phases once their jumps are taken off.
  const centers = new Map();
  function gridCenter(jump) {
    if (!centers.has(jump)) {
      const [advance, firsts, lasts] = jump;
      let sum = 0;
      let count = 0;
      firsts.forEach((first, phase) => {
        if (first === null) return;
        sum += (first + lasts[phase]) / 2 - (phase * advance) / firsts.length;
        count += 1;
      });
      centers.set(jump, count ? sum / count : 0);
    }
    return centers.get(jump);
  }

  function clamped(layer, axis, unit) {
    return layer.shape ? Math.min(Math.max(unit, 0), layer.shape[axis] - 1) : unit;
  }

  // The unit drawn nearest to a place.
  function nearest(layer, axis, place) {
    const distance = (unit) => Math.abs(center(layer, axis, unit) - place);
    let best = clamped(layer, axis, Math.round((place - center(layer, axis, 0)) / stride(layer, axis)));
    for (let step = -3; step <= 3; step++) {
      const unit = clamped(layer, axis, best + step);
      if (distance(unit) < distance(best)) best = unit;
    }
    return best;
  }

  // The picture for a unit: its own, one of which a shift is exactly its own, or the nearest one.
  function sampleFor(layer, unit) {
    const same = (a, b) => a.every((v, i) => v === b[i]);
    const own = layer.samples.find((s) => same(s.unit, unit));
    if (own) return { sample: own, shift: unit.map(() => 0), how: "own" };
    // Paths of several strides, and global ones, do not shift together.
    const jumps = layer.ends.map((e) => (e.length === 1 && e[0][0] > 0 ? e[0] : null));
    if (jumps.includes(null) || !layer.samples.length) return null;
    const within = (u) => layer.inner !== null && layer.inner.every(([lo, hi], i) => u[i] >= lo && u[i] <= hi);
    const inside = (u) => !bounded || within(u);
    const inPhase = (s) => s.unit.every((u, i) => (unit[i] - u) % jumps[i][1].length === 0);
    let sample = inside(unit) ? layer.samples.find((s) => inPhase(s) && inside(s.unit)) : undefined;
    let how = "moved";
    if (!sample) {
      const distance = (s) => s.unit.reduce((sum, u, i) => sum + (u - unit[i]) ** 2, 0);
      sample = layer.samples.reduce((a, b) => (distance(b) < distance(a) ? b : a));
      how = inside(unit) && inside(sample.unit) ? "phase" : "border";
    }
    // From the middle of one box to that of the other.
    const middle = (found) => found.map(([a, b]) => (a + b) / 2);
    const [to, from] = [middle(box(layer, unit)), middle(box(layer, sample.unit))];
    return { sample, shift: to.map((place, i) => Math.round(place - from[i])), how };
  }

  // --- pictures' levels and colours -----------------------------------------------------------

  async function unpacked(part) {
    const bytes = Uint8Array.from(atob(part.levels), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const levels = new Uint8Array(await new Response(stream).arrayBuffer());
    const width = part.shape[part.shape.length - 1];
    for (let i = width; i < levels.length; i++) levels[i] += levels[i - width];
    for (let i = 0; i < levels.length; i++) if (i % width) levels[i] += levels[i - 1];
    return levels;
  }

  const decoded = new Map();
  function levelsOf(index) {
    if (!decoded.has(index)) {
      decoded.set(index, null);
      Promise.all(data.pictures[index].parts.map(unpacked)).then((levels) => {
        decoded.set(index, levels);
        draw();
      });
    }
    return decoded.get(index);
  }

  // Viridis (van der Walt and Smith), whose lightness rises evenly; between these it is linear.
  const STOPS = [
    [68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142], [33, 145, 140],
    [34, 168, 132], [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37],
  ];
  function colour(share) {
    const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
    const low = Math.min(Math.floor(at), STOPS.length - 2);
    return STOPS[low].map((v, i) => Math.round(v + (at - low) * (STOPS[low + 1][i] - v)));
  }
  let palette = [];
  function makePalette() {
    const linear = $("scale").value === "linear";
    palette = Array.from({ length: data.levels + 1 }, (_, level) => {
      if (!level) return [0, 0, 0, 0];
      const log = (level - 1) / (data.levels - 1);
      const share = linear ? 10 ** ((log - 1) * data.decades) : log;
      // What is faint fades into the page.
      return [...colour(share), Math.round(255 * Math.min(1, 0.15 + share * (linear ? 12 : 5)))];
    });
    painted.clear();
  }

  const painted = new Map();
  function paintedPart(index, number) {
    const key = `${index}/${number}`;
    const levels = levelsOf(index);
    if (levels === null) return null;
    if (!painted.has(key)) {
      if (painted.size > 60) painted.clear();
      const { shape } = data.pictures[index].parts[number];
      const canvas = document.createElement("canvas");
      canvas.width = shape[shape.length - 1];
      canvas.height = shape.length > 1 ? shape[0] : 1;
      const image = new ImageData(canvas.width, canvas.height);
      levels[number].forEach((level, i) => image.data.set(palette[level], 4 * i));
      canvas.getContext("2d").putImageData(image, 0, 0);
      painted.set(key, canvas);
    }
    return painted.get(key);
  }

  // --- state ----------------------------------------------------------------------------------

  const state = { layer: data.first, unit: new Array(axes).fill(0), view: [] };
  const current = () => data.layers[state.layer];

  function setLayer(index, keep) {
    const before = state.unit.map((u, axis) => center(current(), axis, u));
    state.layer = Math.min(Math.max(index, 0), data.layers.length - 1);
    const layer = current();
    // On the unbounded grid unit 0 is where every layer begins.
    const begin = !bounded && state.unit.every((u) => u === 0);
    if (keep && !begin) state.unit = before.map((place, axis) => nearest(layer, axis, place));
    else state.unit = layer.shape ? layer.shape.map((n) => Math.floor(n / 2)) : new Array(axes).fill(0);
    $("slider").value = String(state.layer);
    $("slider").setAttribute("aria-valuetext", layer.name);
    $("layer").textContent = layer.name;
    $("op").textContent = `${layer.op}, layer ${state.layer + 1} of ${data.layers.length}`;
    for (const row of document.querySelectorAll("#layers tbody tr")) {
      row.classList.toggle("chosen", Number(row.dataset.layer) === state.layer);
    }
    const mark = document.querySelector(".growth .at");
    if (mark) {
      const svg = mark.ownerSVGElement.dataset;
      const x = Number(svg.left) + (state.layer * Number(svg.width)) / Math.max(data.layers.length - 1, 1);
      mark.setAttribute("x1", x);
      mark.setAttribute("x2", x);
    }
    fit();
    draw();
  }

  function setUnit(unit) {
    state.unit = unit.map((u, axis) => clamped(current(), axis, u));
    const outside = state.unit.some((u, axis) => {
      const place = center(current(), axis, u);
      return place < state.view[axis][0] || place > state.view[axis][1];
    });
    if (outside) fit();
    draw();
  }

  // The part of the input that is shown, per axis.
  function fit() {
    const mode = $("view").value;
    const layer = current();
    state.view = data.axes.map((_, axis) => {
      if (mode === "image") {
        const n = data.inputSize[axis];
        return [-0.5 - 0.06 * n, n - 0.5 + 0.06 * n];
      }
      const shown = mode === "network" ? data.layers[data.output] : layer;
      const at = center(layer, axis, state.unit[axis]);
      const seen = ends(shown, axis, 0);
      let half = 4 * stride(layer, axis) + 4;
      if (seen && Number.isFinite(seen[0])) half = Math.max(half, 0.75 * (seen[1] - seen[0] + 1) + 2 * stride(layer, axis));
      else if (bounded) half = data.inputSize[axis] * 0.55;
      else half = Math.max(half, 40);
      return [at - half, at + half];
    });
    if (mode !== "image" && axes > 1) {
      const half = Math.max(...state.view.map(([lo, hi]) => (hi - lo) / 2));
      state.view = state.view.map(([lo, hi]) => [(lo + hi) / 2 - half, (lo + hi) / 2 + half]);
    }
  }

  // --- drawing --------------------------------------------------------------------------------

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const PROFILE = 54;
  const GAP = 8;

  // One canvas: the input along two axes (in 1-D along one), with profiles beside it.
  class Panel {
    constructor(part, vertical, horizontal) {
      Object.assign(this, { part, vertical, horizontal });
      this.canvas = document.createElement("canvas");
      this.canvas.tabIndex = 0;
      this.canvas.setAttribute("role", "img");
      this.canvas.setAttribute("aria-describedby", "said");
      $("panels").append(this.canvas);
      const point = (event) => {
        const bounds = this.canvas.getBoundingClientRect();
        this.choose(event.clientX - bounds.left, event.clientY - bounds.top);
      };
      this.canvas.addEventListener("pointermove", point);
      this.canvas.addEventListener("pointerdown", point);
      this.canvas.addEventListener("keydown", (event) => this.key(event));
    }

    measure() {
      const width = this.canvas.clientWidth || 300;
      const [lo, hi] = state.view[this.horizontal];
      this.left = 46;
      this.top = 6;
      const aside = this.vertical === null ? 6 : PROFILE + GAP + 6;
      this.width = Math.max(width - this.left - aside, 40);
      this.scale = this.width / (hi - lo);
      this.height = 64;
      if (this.vertical !== null) {
        const [top, bottom] = state.view[this.vertical];
        const most = Math.max(window.innerHeight * 0.62, 220);
        this.scale = Math.min(this.scale, most / (bottom - top));
        this.width = this.scale * (hi - lo);
        this.height = this.scale * (bottom - top);
      }
      this.below = this.top + this.height + 34;
      const profile = this.vertical === null ? 130 : PROFILE;
      this.profile = profile;
      const height = this.below + profile + 4;
      const ratio = window.devicePixelRatio || 1;
      this.canvas.style.height = `${height}px`;
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      const pen = this.canvas.getContext("2d");
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      const { left, top, scale } = this;
      this.canvas.dataset.frame = JSON.stringify({ left, top, scale, view: state.view });
      return pen;
    }

    x(pixel) { return this.left + (pixel - state.view[this.horizontal][0]) * this.scale; }
    y(pixel) { return this.vertical === null ? this.top + this.height / 2 : this.top + (pixel - state.view[this.vertical][0]) * this.scale; }

    choose(x, y) {
      const unit = [...state.unit];
      const layer = current();
      unit[this.horizontal] = nearest(layer, this.horizontal, state.view[this.horizontal][0] + (x - this.left) / this.scale);
      if (this.vertical !== null) {
        unit[this.vertical] = nearest(layer, this.vertical, state.view[this.vertical][0] + (y - this.top) / this.scale);
      }
      if (unit.some((u, axis) => u !== state.unit[axis])) setUnit(unit);
    }

    key(event) {
      const steps = { ArrowLeft: [this.horizontal, -1], ArrowRight: [this.horizontal, 1], ArrowUp: [this.vertical, -1], ArrowDown: [this.vertical, 1] };
      const [axis, step] = steps[event.key] || [null, 0];
      if (axis === null) return;
      event.preventDefault();
      setUnit(state.unit.map((u, i) => (i === axis ? u + step : u)));
    }

    // A rectangle in pixels, both ends included, cut to a little more than what is shown.
    rectangle(rows, columns) {
      const cut = (ends, axis) => {
        const [lo, hi] = state.view[axis];
        // What has no end is drawn along the edges.
        const edge = 3 / this.scale;
        const first = Number.isFinite(ends[0]) ? Math.max(ends[0] - 0.5, lo - 9) : lo + edge;
        const last = Number.isFinite(ends[1]) ? Math.min(ends[1] + 0.5, hi + 9) : hi - edge;
        return [first, last];
      };
      const [a, b] = cut(columns, this.horizontal);
      if (this.vertical === null) return [this.x(a), this.top, this.x(b) - this.x(a), this.height];
      const [c, d] = cut(rows, this.vertical);
      return [this.x(a), this.y(c), this.x(b) - this.x(a), this.y(d) - this.y(c)];
    }

    draw(layer, seen, chosen) {
      const pen = this.measure();
      const { vertical: v, horizontal: h } = this;
      pen.fillStyle = style("--plot");
      pen.fillRect(this.left, this.top, this.width, this.height);
      pen.save();
      pen.beginPath();
      pen.rect(this.left, this.top, this.width, this.height);
      pen.clip();
      const whole = bounded ? this.rectangle(v === null ? null : [0, data.inputSize[v] - 1], [0, data.inputSize[h] - 1]) : null;
      if (whole) {
        pen.fillStyle = style("--image");
        pen.fillRect(...whole);
      }
      if (chosen) this.drawPicture(pen, chosen, whole);
      this.drawGrid(pen);
      if (whole) {
        pen.strokeStyle = style("--soft");
        pen.lineWidth = 1;
        pen.strokeRect(...whole);
      }
      this.drawUnits(pen, layer);
      if (seen) {
        pen.strokeStyle = style("--box");
        pen.lineWidth = 2;
        pen.setLineDash(seen.flat().every(Number.isFinite) ? [] : [6, 5]);
        pen.strokeRect(...this.rectangle(v === null ? null : seen[v], seen[h]));
        pen.setLineDash([]);
      }
      pen.fillStyle = style("--here");
      pen.beginPath();
      const here = (axis) => center(layer, axis, state.unit[axis]);
      pen.arc(this.x(here(h)), this.y(v === null ? 0 : here(v)), 4, 0, 7);
      pen.fill();
      pen.restore();
      this.drawTicks(pen);
      if (chosen) this.drawProfiles(pen, chosen);
    }

    drawPicture(pen, { sample, shift }, whole) {
      const image = paintedPart(sample.picture, this.part);
      if (!image) return;
      const { shape, step } = data.pictures[sample.picture].parts[this.part];
      const { vertical: v, horizontal: h } = this;
      pen.save();
      if (whole) {
        pen.beginPath();
        pen.rect(...whole);
        pen.clip();
      }
      const last = shape.length - 1;
      const x = this.x(sample.origin[h] + shift[h] - 0.5);
      const width = shape[last] * step[last] * this.scale;
      const y = v === null ? this.top : this.y(sample.origin[v] + shift[v] - 0.5);
      const height = v === null ? this.height : shape[0] * step[0] * this.scale;
      pen.imageSmoothingEnabled = step[0] > 1 || this.scale < 2;
      pen.drawImage(image, x, y, width, height);
      pen.restore();
    }

    drawGrid(pen) {
      if (this.scale < 7) return;
      pen.strokeStyle = style("--grid");
      pen.lineWidth = 1;
      pen.beginPath();
      for (const [axis, place] of [[this.horizontal, "x"], [this.vertical, "y"]]) {
        if (axis === null) continue;
        const [lo, hi] = state.view[axis];
        for (let i = Math.ceil(lo - 0.5); i <= hi; i++) {
          const at = Math.round(this[place](i + 0.5)) + 0.5;
          if (place === "x") { pen.moveTo(at, this.top); pen.lineTo(at, this.top + this.height); }
          else { pen.moveTo(this.left, at); pen.lineTo(this.left + this.width, at); }
        }
      }
      pen.stroke();
    }

    drawUnits(pen, layer) {
      const places = (axis) => {
        if (axis === null) return [null];
        if (stride(layer, axis) * this.scale < 8) return [];
        const [lo, hi] = state.view[axis];
        const found = [];
        const last = nearest(layer, axis, hi) + 1;
        for (let u = nearest(layer, axis, lo) - 1; u <= last; u++) {
          if (clamped(layer, axis, u) === u && ends(layer, axis, u)) found.push(center(layer, axis, u));
        }
        return found;
      };
      pen.fillStyle = style("--unit");
      const rows = places(this.vertical);
      const columns = places(this.horizontal);
      if (rows.length * columns.length > 6000) return;
      for (const row of rows) {
        for (const column of columns) {
          pen.beginPath();
          pen.arc(this.x(column), this.y(row), 1.6, 0, 7);
          pen.fill();
        }
      }
    }

    drawTicks(pen) {
      pen.fillStyle = style("--soft");
      pen.font = "11px system-ui, sans-serif";
      const room = (axis) => {
        const [lo, hi] = state.view[axis];
        const least = ((axis === this.horizontal ? 52 : 30) / this.scale);
        const power = 10 ** Math.floor(Math.log10(least));
        const step = Math.max(1, [1, 2, 5, 10].map((f) => f * power).find((s) => s >= least) || 10 * power);
        const found = [];
        for (let i = Math.ceil(lo / step) * step; i <= hi; i += step) found.push(i);
        return found;
      };
      pen.textAlign = "center";
      pen.textBaseline = "top";
      for (const i of room(this.horizontal)) pen.fillText(show(Math.round(i)), this.x(i), this.top + this.height + 4);
      pen.fillText(`${data.axes[this.horizontal]} (input pixels)`, this.left + this.width / 2, this.top + this.height + 18);
      if (this.vertical === null) return;
      pen.textAlign = "right";
      pen.textBaseline = "middle";
      for (const i of room(this.vertical)) if (this.y(i) > this.top + 5) pen.fillText(show(Math.round(i)), this.left - 4, this.y(i));
      pen.save();
      pen.translate(9, this.top + this.height / 2);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "center";
      pen.fillText(data.axes[this.vertical], 0, 0);
      pen.restore();
    }

    drawProfiles(pen, { sample, shift }) {
      pen.strokeStyle = style("--curve");
      pen.fillStyle = style("--curve");
      pen.lineWidth = 1.5;
      for (const [axis, flat] of [[this.horizontal, true], [this.vertical, false]]) {
        if (axis === null) continue;
        const { step, values } = data.pictures[sample.picture].profiles[axis];
        const base = flat ? this.below + this.profile : this.left + this.width + GAP;
        pen.save();
        pen.beginPath();
        if (flat) pen.rect(this.left, this.below, this.width, this.profile + 1);
        else pen.rect(base, this.top, PROFILE + 1, this.height);
        pen.clip();
        const line = new Path2D();
        const go = (pixel, value) => {
          const along = flat ? this.x(pixel) : this.y(pixel);
          const height = (value / 1000) * (flat ? this.profile - 2 : PROFILE - 2);
          if (flat) line.lineTo(along, base - height);
          else line.lineTo(base + height, along);
        };
        const start = sample.origin[axis] + shift[axis] - 0.5;
        go(start, 0);
        values.forEach((value, i) => { go(start + i * step, value); go(start + (i + 1) * step, value); });
        go(start + values.length * step, 0);
        pen.globalAlpha = 0.16;
        pen.fill(line);
        pen.globalAlpha = 1;
        pen.stroke(line);
        pen.restore();
      }
    }
  }

  const pairs = axes === 1 ? [[null, 0]] : axes === 2 ? [[0, 1]] : [[1, 2], [0, 2], [0, 1]];
  const panels = pairs.map(([v, h], part) => new Panel(part, v, h));

  const show = (value) => (Number.isFinite(value) ? String(value) : value < 0 ? "-∞" : "∞").replace("-", "−");
  const listed = (values) => (values.length === 1 ? show(values[0]) : `(${values.map(show).join(", ")})`);

  function describe(layer, seen, chosen) {
    const unit = `Unit ${listed(state.unit)} of ${layer.name}`;
    let text;
    if (seen === null) text = `${unit} sees nothing of the input.`;
    else {
      const parts = seen.map(([a, b], axis) => `${data.axes[axis]} ${show(a)} … ${show(b)}`);
      const sizes = seen.map(([a, b]) => (Number.isFinite(b - a) ? String(b - a + 1) : "∞"));
      const plural = sizes.every((s) => s === "1") ? "" : "s";
      text = `${unit}. TRF: ${sizes.join(" × ")} pixel${plural}, ${parts.join(", ")}`;
      const beyond = bounded && seen.some(([a, b], i) => a < 0 || b >= data.inputSize[i]);
      text += beyond ? " (it reaches beyond the image, into padding). " : ". ";
    }
    if (layer.note) text += `No ERF: ${layer.note}.`;
    else if (chosen === null && seen !== null) {
      text += "ERF: not drawn here, as this unit's own is not on the page and no shift of another one is it.";
    } else if (chosen) {
      text += {
        own: "ERF: this unit's own.",
        moved: `ERF: this unit's own, which is that of unit ${listed(chosen.sample.unit)} moved.`,
        phase: `ERF: that of unit ${listed(chosen.sample.unit)}, moved here; this unit's own differs somewhat, as it is in another phase.`,
        border: `ERF: that of unit ${listed(chosen.sample.unit)}, moved here; this unit's own differs somewhat, as the border cuts it otherwise.`,
      }[chosen.how];
      if (axes === 3) {
        const at = chosen.sample.middle.map((m, axis) => `${data.axes[axis]} = ${show(m + chosen.shift[axis])}`);
        text += ` Sections at ${at.join(", ")}.`;
      }
    }
    return text;
  }

  let waiting = false;
  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const layer = current();
      const seen = box(layer, state.unit);
      const chosen = seen === null ? null : sampleFor(layer, state.unit);
      for (const panel of panels) panel.draw(layer, seen, chosen);
      const text = describe(layer, seen, chosen);
      if ($("said").textContent !== text) $("said").textContent = text;
      for (const { canvas } of panels) canvas.setAttribute("aria-label", `Input with the fields of unit ${listed(state.unit)} of ${layer.name}; arrow keys move the unit`);
      drawRamp();
    });
  }

  function drawRamp() {
    const canvas = $("ramp");
    canvas.width = data.levels + 1;
    canvas.height = 1;
    const image = new ImageData(canvas.width, 1);
    const linear = $("scale").value === "linear";
    for (let i = 0; i <= data.levels; i++) {
      const share = i / data.levels;
      image.data.set([...colour(share), Math.round(255 * Math.min(1, 0.15 + share * (linear ? 12 : 5)))], 4 * i);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    $("lowest").textContent = linear ? "0" : `10⁻${"⁰¹²³⁴⁵⁶⁷⁸⁹"[data.decades]}`;
  }

  // --- controls -------------------------------------------------------------------------------

  $("slider").addEventListener("input", () => setLayer(Number($("slider").value), true));
  $("back").addEventListener("click", () => setLayer(state.layer - 1, true));
  $("on").addEventListener("click", () => setLayer(state.layer + 1, true));
  $("view").addEventListener("change", () => { fit(); draw(); });
  $("scale").addEventListener("change", () => { makePalette(); draw(); });
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const growth = document.querySelector(".growth");
  if (growth) {
    growth.addEventListener("click", (event) => {
      const bounds = growth.getBoundingClientRect();
      const x = ((event.clientX - bounds.left) / bounds.width) * growth.viewBox.baseVal.width;
      const share = (x - Number(growth.dataset.left)) / Number(growth.dataset.width);
      setLayer(Math.round(share * (data.layers.length - 1)), true);
    });
  }

  // --- the table ------------------------------------------------------------------------------

  const body = document.querySelector("#layers tbody");
  const heads = [...document.querySelectorAll("#layers thead th")];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        return head.classList.contains("word") ? cell.textContent : cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
      };
      const order = (a, b) => {
        if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
        return a < b ? -1 : a > b ? 1 : 0;
      };
      const rows = [...body.rows].map((row) => [key(row), row]);
      // What has no value stays at the end.
      const empty = (k) => typeof k === "number" && Number.isNaN(k);
      rows.sort(([a], [b]) => (down && !empty(a) && !empty(b) ? -order(a, b) : order(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
  body.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    setLayer(Number(button.closest("tr").dataset.layer), false);
    $("view-section").scrollIntoView({ block: "start" });
  });

  makePalette();
  setLayer(data.first, false);
})();
