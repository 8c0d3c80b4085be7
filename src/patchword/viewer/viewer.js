(() => {
  "use strict";

  // Color stops; RGB is interpolated linearly between them: matplotlib's viridis, and RdBu reversed with white at zero.
  const VIRIDIS = "440154470d6048186a482374472d7b4537814240863e49893b528b375b8d33638d2f6b8e2c728e297a8e26828e23898e21918c1f988b1fa08822a78528ae8032b67a3fbc734ec36b5ec96270cf5784d44b98d83eaddc30c2df23d8e219ece51bfde725";
  const DIVERGING = "0530612065ab4393c390c4ddd1e5f0f7f6f6fddbc7f3a481d6604db1182b67001f";
  const LEVELS = 256;
  const STRETCHED = 5; // Photos with a larger aspect ratio than this are not drawn to scale.
  const SMALL = 200; // Photos up to this many pixels are drawn without smoothing.
  const ALL = "all side by side"; // the choice of the map of every source

  const host = document.currentScript.parentElement;
  const data = JSON.parse(host.querySelector('script[type="application/json"]').textContent);
  const root = host.shadowRoot;
  const find = (selector) => root.querySelector(selector);

  const words = data.pieces.filter((piece) => piece[3]).map(([text, start, end]) => ({ text, start, end }));
  const panels = data.panels.map((panel) => ({
    ...panel,
    maps: decodeMaps(panel),
    regions: panel.regions.map((region) => region.map(Number)), // JSON has a confidence that is not finite as text.
    read: readUpTo(panel),
    cache: new Map(),
  }));
  const sources = [...new Set(panels.flatMap((panel) => Object.keys(panel.maps)))];

  const state = {
    source: sources[0], // or ALL
    scale: null, // the chosen scale; null for the one that suits what is shown, see `usualScale`
    drawing: "smooth",
    opacity: 65,
    threshold: 0,
    show: { gray: true, pruned: true, regions: false, outlines: true, cropped: false },
    pinned: null, // the pinned words as [first, last], or null
    hovered: null, // the words under the pointer as [first, last], or null
    spot: null, // the point under the pointer as {view, x, y}, with x and y as shares of the photo, or null
    region: null, // [panel, number], or null
  };

  // ---------------------------------------------------------------- numbers

  function decodeMaps(panel) {
    const size = panel.grid[0] * panel.grid[1];
    const decode = (text) => {
      const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
      const all = new Float32Array(bytes.buffer);
      return panel.parts.map((_, part) => all.subarray(part * size, (part + 1) * size));
    };
    return Object.fromEntries(Object.entries(panel.maps).map(([source, text]) => [source, decode(text)]));
  }

  /** One past the last character that the panel's tokenizer kept. */
  function readUpTo(panel) {
    return Math.max(0, ...panel.parts.filter((part) => part[2] > 0).map((part) => part[1]));
  }

  function partsOf(panel, start, end) {
    return panel.parts.map((part, index) => ({ start: part[0], end: part[1], tokens: part[2], content: part[3], unknown: part[4], index }))
      .filter((part) => part.start < end && part.end > start);
  }

  /** Whether the panel's tokenizer does not know a word, so that its map is that of an unknown word. */
  const isUnknown = (panel, { start, end }) => partsOf(panel, start, end).some((part) => part.unknown);

  const isCut = (panel, part) => part.tokens === 0 && part.end > panel.read;

  /** The mean map of the content words, or of all words if there are no content words; null if a word is truncated. */
  function mapOf(panel, source, start, end) {
    const key = `${source} ${start} ${end}`;
    if (!panel.cache.has(key)) panel.cache.set(key, meanMap(panel, source, partsOf(panel, start, end)));
    return panel.cache.get(key);
  }

  function meanMap(panel, source, parts) {
    const content = parts.filter((part) => part.content);
    const members = content.length ? content : parts;
    const total = members.reduce((sum, part) => sum + part.tokens, 0);
    if (!total || !(source in panel.maps) || parts.some((part) => isCut(panel, part))) return null;
    const mean = new Float64Array(panel.grid[0] * panel.grid[1]);
    for (const part of members) {
      const map = panel.maps[source][part.index];
      for (let patch = 0; patch < mean.length; patch++) mean[patch] += (map[patch] * part.tokens) / total;
    }
    return mean;
  }

  function range(values) {
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      if (!Number.isFinite(value)) return null;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return low <= high ? { low, high } : null;
  }

  function joined(ranges) {
    const known = ranges.filter(Boolean);
    return known.length ? { low: Math.min(...known.map((r) => r.low)), high: Math.max(...known.map((r) => r.high)) } : null;
  }

  /** The limits of a color scale; it is `signed`, with white at zero, if the values of `family` have both signs. */
  function scaleOf(limits, family) {
    if (!limits) return null;
    return { ...limits, signed: family.low < 0 && family.high > 0 };
  }

  /** The range of a source over all words of a panel, so that a panel has the same kind of colors for all words. */
  function familyOf({ panel, source }) {
    const key = `family ${source}`;
    if (!panel.cache.has(key)) panel.cache.set(key, joined((panel.maps[source] ?? []).map(range)));
    return panel.cache.get(key);
  }

  /** For each patch the share of the other patches with a lower value; of equal patches, half are lower. */
  function ranks(map) {
    const sorted = Float64Array.from(map).sort();
    const first = new Map(), count = new Map();
    sorted.forEach((value, place) => {
      if (!first.has(value)) first.set(value, place);
      count.set(value, (count.get(value) ?? 0) + 1);
    });
    return Float64Array.from(map, (value) => (map.length > 1 ? (first.get(value) + (count.get(value) - 1) / 2) / (map.length - 1) : 0.5));
  }

  /** Several maps of one quantity share a range. Maps of different or unknown quantities have only ranks in common. */
  function usualScale() {
    if (views.length < 2) return "each map";
    const unknown = views.some(({ panel, source }) => source === "align" && panel.measure === "value");
    return unknown || new Set(views.map(measureOf)).size > 1 ? "ranks" : "shared";
  }

  function position(scale, value) {
    if (scale.signed) return 0.5 + value / (2 * Math.max(-scale.low, scale.high));
    return scale.high > scale.low ? (value - scale.low) / (scale.high - scale.low) : 0.5;
  }

  const rankOf = (map, patch) => 1 + map.reduce((count, value) => count + (value > map[patch]), 0);
  const best = (map) => map.indexOf(Math.max(...map));

  function number(value) {
    if (!Number.isFinite(value)) return "not finite";
    const size = Math.abs(value);
    const text = size && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
    return text.replace(/-/g, "−");
  }

  // ---------------------------------------------------------------- colors

  function table(stops) {
    const rgb = stops.match(/../g).map((hex) => parseInt(hex, 16));
    const last = rgb.length / 3 - 1;
    return Array.from({ length: LEVELS }, (_, level) => {
      const place = (level / (LEVELS - 1)) * last;
      const left = Math.min(Math.floor(place), last - 1), share = place - left;
      return [0, 1, 2].map((c) => Math.round(rgb[3 * left + c] * (1 - share) + rgb[3 * left + 3 + c] * share));
    });
  }

  const COLORS = { one: table(VIRIDIS), two: table(DIVERGING) };

  function color(scale, value) {
    const level = Math.round(position(scale, value) * (LEVELS - 1));
    return COLORS[scale.signed ? "two" : "one"][Math.min(Math.max(level, 0), LEVELS - 1)];
  }

  /** The colors of a scale with the chosen opacity, as pixels. */
  function palette(scale) {
    const alpha = Math.round(state.opacity * 2.55);
    const bytes = COLORS[scale.signed ? "two" : "one"].flatMap((rgb) => [...rgb, alpha]);
    return new Uint32Array(Uint8Array.from(bytes).buffer);
  }

  const luminance = ([r, g, b]) => 0.2126 * r ** 2.2 + 0.7152 * g ** 2.2 + 0.0722 * b ** 2.2;
  const inkOn = (rgb) => (luminance(rgb) > 0.18 * 255 ** 2.2 ? "#000" : "#fff");

  // ---------------------------------------------------------------- drawing

  /** For each of `pixels` positions along an axis of `patches`: two patches and the weight of the second. */
  function taps(pixels, patches) {
    return Array.from({ length: pixels }, (_, pixel) => {
      const place = ((pixel + 0.5) * patches) / pixels - 0.5;
      const inside = Math.min(Math.max(place, 0), patches - 1);
      const left = Math.min(Math.floor(inside), Math.max(patches - 2, 0));
      return state.drawing === "smooth"
        ? [left, Math.min(left + 1, patches - 1), inside - left]
        : [Math.min(Math.floor(((pixel + 0.5) * patches) / pixels), patches - 1), 0, 0];
    });
  }

  function paint(canvas, map, [rows, columns], scale) {
    const context = canvas.getContext("2d");
    const box = canvas.getBoundingClientRect();
    const width = Math.min(Math.max(Math.round(box.width), columns), 600);
    const height = Math.min(Math.max(Math.round(box.height), rows), 600);
    Object.assign(canvas, { width, height });
    if (!map || !scale) return;
    const image = context.createImageData(width, height);
    const colors = palette(scale);
    const [across, down] = [taps(width, columns), taps(height, rows)];
    const least = cutoff(scale);
    const mixed = new Float64Array(columns); // one row of pixels, before it is interpolated between the columns
    const [start, slope] = [position(scale, 0), position(scale, 1) - position(scale, 0)];
    const out = new Uint32Array(image.data.buffer);
    for (let y = 0, place = 0; y < height; y++) {
      const [top, bottom, v] = down[y];
      for (let c = 0; c < columns; c++) mixed[c] = map[top * columns + c] * (1 - v) + map[bottom * columns + c] * v;
      for (let x = 0; x < width; x++, place++) {
        const tap = across[x];
        const value = mixed[tap[0]] * (1 - tap[2]) + mixed[tap[1]] * tap[2];
        if (value >= least) out[place] = colors[Math.round((start + slope * value) * (LEVELS - 1))];
      }
    }
    context.putImageData(image, 0, 0);
  }

  const cutoff = (scale) => (state.threshold ? scale.low + (state.threshold / 100) * (scale.high - scale.low) : -Infinity);

  function drawLegend(view, scale, kind) {
    const { bar, low, high, zero, what, cutoff: mark } = view;
    view.legend.style.visibility = scale ? "visible" : "hidden";
    if (!scale) return;
    const flat = scale.low === scale.high;
    bar.width = LEVELS;
    bar.height = 1;
    const context = bar.getContext("2d");
    for (let x = 0; x < LEVELS; x++) {
      context.fillStyle = `rgb(${color(scale, scale.low + (x / (LEVELS - 1)) * (scale.high - scale.low))})`;
      context.fillRect(x, 0, 1, 1);
    }
    const share = flat ? 0 : -scale.low / (scale.high - scale.low);
    low.textContent = kind === "ranks" ? "lowest" : number(scale.low);
    high.textContent = kind === "ranks" ? "highest" : flat ? "" : number(scale.high);
    zero.hidden = !(share > 0.2 && share < 0.8);
    zero.textContent = "0";
    zero.style.left = `${100 * share}%`;
    what.hidden = !zero.hidden;
    what.textContent = kind === "ranks" ? `rank of ${measureOf(view)}` : measureOf(view);
    mark.hidden = !state.threshold || flat;
    mark.style.left = `${state.threshold}%`;
  }

  /** An SVG element with its attributes and children; text from data never becomes markup. */
  function svg(tag, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const boxPath = ([top, left, bottom, right]) => `M${left} ${top}H${right}V${bottom}H${left}Z`;
  const twice = (path, extra = {}) => ["dark", "light"].map((name) => svg("path", { class: name, d: path, ...extra }));

  const hatch = () =>
    svg(
      "pattern",
      { id: "hatch", width: 0.25, height: 0.25, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      svg("rect", { class: "shade", width: 0.25, height: 0.25, opacity: 0.45 }),
      svg("rect", { class: "line", width: 0.06, height: 0.25, opacity: 0.5 }),
    );

  function drawOver(view, map, selection, patch) {
    const { panel, index } = view;
    const [rows, columns] = panel.grid;
    const layers = [hatch()];
    if (state.show.pruned && prunes(view) && map) {
      const cells = [...map.keys()].filter((p) => map[p] === 0);
      const path = cells.map((p) => `M${p % columns} ${Math.floor(p / columns)}h1v1h-1z`).join("");
      layers.push(svg("path", { class: "hatched", d: path }));
    }
    if (state.show.regions) {
      for (const region of [...panel.regions].reverse()) {
        layers.push(...twice(boxPath(region), { opacity: (0.15 + 0.85 * region[4]).toFixed(3) }));
      }
    }
    if (state.region?.[0] === index) layers.push(...twice(boxPath(panel.regions[state.region[1]])));
    if (state.show.outlines && selection && panel.outlines.length) {
      const scaled = { transform: `scale(${columns / panel.pixels[1]} ${rows / panel.pixels[0]})` };
      const paths = new Set(partsOf(panel, ...selection).map((part) => panel.outlines[part.index]));
      for (const path of paths) layers.push(...twice(path, scaled));
    }
    if (patch !== null) {
      const [row, column] = [Math.floor(patch / columns), patch % columns];
      layers.push(...twice(boxPath([row, column, row + 1, column + 1])));
    }
    view.over.replaceChildren(...layers);
  }

  const prunes = ({ panel, source }) => panel.pruned && source === "align";
  const measureOf = ({ panel, source }) => (source === "align" && panel.measure !== "value" ? panel.measure : source);

  // ---------------------------------------------------------------- selection and pointer

  function firstContent() {
    const first = words.findIndex(isNameable);
    return first < 0 ? null : [first, first];
  }

  function isContent(word) {
    return panels.some((panel) => partsOf(panel, word.start, word.end).some((part) => part.content && part.tokens));
  }

  /** Whether a word can be reported as the best match: it is a content word and not only punctuation. */
  const isNameable = (word) => isContent(word) && !/^[\p{P}\s]*$/u.test(word.text);

  function isCutWord(word) {
    return panels.some((panel) => partsOf(panel, word.start, word.end).some((part) => isCut(panel, part)));
  }

  const isUnknownWord = (word) => panels.some((panel) => isUnknown(panel, word));

  const ordered = (a, b) => [Math.min(a, b), Math.max(a, b)];
  const chosen = () => state.hovered ?? state.pinned;

  /** The character range of the selection, or null. */
  function span() {
    const range = chosen();
    return range && [words[range[0]].start, words[range[1]].end];
  }

  const textOf = ([start, end]) => data.pieces.filter((p) => p[1] >= start && p[2] <= end).map((p) => p[0]).join("");

  /** The patch of `panel` at a position in the photo, or null. */
  function patchAt(panel, { x, y }) {
    const [left, top, right, bottom] = panel.seen;
    const [u, v] = [(x - left) / (right - left), (y - top) / (bottom - top)];
    if (!(u >= 0 && u < 1 && v >= 0 && v < 1)) return null;
    return Math.floor(v * panel.grid[0]) * panel.grid[1] + Math.floor(u * panel.grid[1]);
  }

  /** The position in the photo of the center of a patch. */
  function centerOf(panel, patch) {
    const [left, top, right, bottom] = panel.seen;
    const [rows, columns] = panel.grid;
    return {
      x: left + ((right - left) * ((patch % columns) + 0.5)) / columns,
      y: top + ((bottom - top) * (Math.floor(patch / columns) + 0.5)) / rows,
    };
  }

  /** Content words with their values at a patch, best first. */
  function wordsAt({ panel, source }, patch) {
    return words
      .map((word, index) => ({ word, index, map: mapOf(panel, source, word.start, word.end) }))
      .filter(({ word, map }) => map && isNameable(word))
      .map(({ word, index, map }) => ({ index, text: word.text, value: map[patch] }))
      .sort((a, b) => b.value - a.value);
  }

  // ---------------------------------------------------------------- rendering the state

  function set(key, value) {
    state[key] = value;
    if (key === "source") buildViews();
  }

  let waiting = false;
  function changed() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      show();
    });
  }

  function show() {
    const selection = span();
    const kind = views.length < 2 ? "each map" : state.scale ?? usualScale();
    for (const input of root.querySelectorAll('[data-key="scale"] input')) input.checked = input.value === kind;
    find('[data-key="scale"]').hidden = views.length < 2;
    const maps = views.map((view) => (selection ? mapOf(view.panel, view.source, ...selection) : null));
    const limits = maps.map((map) => map && range(map));
    const shared = joined(limits);
    const scales = {
      "each map": (view, own) => scaleOf(own, familyOf(view)),
      shared: () => scaleOf(shared, shared),
      ranks: () => ({ low: 0, high: 1, signed: false }),
    };
    views.forEach((view, place) => {
      showView(view, maps[place], limits[place] && scales[kind](view, limits[place]), kind, selection);
    });
    showWords();
    showHint(selection);
  }

  function showView(view, map, scale, kind, selection) {
    const { panel, index } = view;
    const patch = state.spot && patchAt(panel, state.spot);
    placePhoto(view, panel);
    view.stage.classList.toggle("gray", state.show.gray && Boolean(map));
    paint(view.canvas, map && scale && kind === "ranks" ? ranks(map) : map, panel.grid, scale);
    drawLegend(view, scale, kind);
    drawOver(view, map, selection, patch);
    view.absent.textContent = selection ? absence(view, map, selection) : "";
    view.readout.replaceChildren(...readout(view, map, patch));
    view.note.textContent = notesOf(view, map, selection).join(" ");
    view.chips.forEach((chip, number) => chip.classList.toggle("selected", state.region?.[0] === index && state.region[1] === number));
    view.chosen.textContent = state.region?.[0] === index ? regionText(view, map, panel.regions[state.region[1]]) : "";
  }

  function absence({ panel, source }, map, selection) {
    if (map) return range(map) ? "" : "the map is not finite";
    if (!(source in panel.maps)) return `this model has no map “${source}”`;
    return partsOf(panel, ...selection).some((part) => isCut(panel, part)) ? "no map: truncated by the tokenizer" : "no map";
  }

  /** The lines below an image: the position of the patch, the value there, and the word that matches it best. */
  function readout(view, map, patch) {
    const [rows, columns] = view.panel.grid;
    const place = (p) => `row ${Math.floor(p / columns) + 1}, column ${(p % columns) + 1}`;
    if (patch === null || patch === undefined) {
      return map && range(map) ? [`maximum at ${place(best(map))}`] : [];
    }
    const lines = [place(patch)];
    if (map) {
      const value = make("b", "", number(map[patch]));
      lines.push(make("br"), `${measureOf(view)} `, value, `, rank ${rankOf(map, patch)} of ${rows * columns}`);
    }
    const match = wordsAt(view, patch)[0];
    if (match) lines.push(make("br"), "best word ", make("b", "", match.text), ` ${number(match.value)}`);
    return lines;
  }

  /** What a reader of a map has to know: words that the tokenizer does not know, pruned patches, a distorted photo. */
  function notesOf(view, map, selection) {
    const { panel } = view, notes = [];
    const unknown = selection ? words.filter((word) => word.start < selection[1] && word.end > selection[0] && isUnknown(panel, word)) : [];
    if (map && unknown.length) notes.push(`This model's tokenizer does not know ${unknown.map((word) => `“${word.text}”`).join(", ")}.`);
    if (map && prunes(view)) {
      const total = map.reduce((sum, value) => sum + value, 0);
      const squares = map.reduce((sum, value) => sum + (value / total) ** 2, 0);
      const left = map.reduce((count, value) => count + (value !== 0), 0);
      notes.push(`${left} of ${map.length} patches remain, effective number ${(1 / squares).toFixed(1)}`);
    }
    const aspect = panel.size[0] / panel.size[1];
    if (aspect > STRETCHED || aspect < 1 / STRETCHED) notes.push(`This photo of ${panel.size.join(" × ")} pixels is not drawn to scale.`);
    return notes;
  }

  function regionText(view, map, [top, left, bottom, right, confidence]) {
    const size = `rows ${top + 1} to ${bottom}, columns ${left + 1} to ${right}, confidence ${number(confidence)}`;
    if (!map) return size;
    let sum = 0;
    for (let row = top; row < bottom; row++) for (let c = left; c < right; c++) sum += map[row * view.panel.grid[1] + c];
    return `${size}, mean ${measureOf(view)} ${number(sum / ((bottom - top) * (right - left)))}`;
  }

  function showWords() {
    const range = chosen();
    const view = state.spot && views[state.spot.view];
    const patch = view ? patchAt(view.panel, state.spot) : null;
    const matches = patch === null ? [] : wordsAt(view, patch);
    const limits = range_of(matches.map((match) => match.value));
    const values = new Map(matches.map((match) => [match.index, match.value]));
    buttons.forEach((button, index) => {
      const inside = range && index >= range[0] && index <= range[1];
      const rgb = limits && values.has(index) ? color(scaleOf(limits, limits), values.get(index)) : null;
      button.classList.toggle("selected", Boolean(inside));
      button.setAttribute("aria-pressed", String(Boolean(state.pinned && index >= state.pinned[0] && index <= state.pinned[1])));
      button.style.background = rgb ? `rgb(${rgb})` : "";
      button.style.color = rgb ? inkOn(rgb) : "";
    });
  }

  const range_of = (values) => (values.length ? range(values) : null);

  function showHint(selection) {
    const help = words.length
      ? "Hover over a word or drag over several words to see their maps; click to pin them."
      : "The text has no words.";
    const cut = words.some(isCutWord) ? " The tokenizer truncated the words that are struck out." : "";
    const unknown = words.some(isUnknownWord) ? " The tokenizer does not know the words with a dotted line." : "";
    const isPinned = state.pinned && !state.hovered;
    find(".hint").textContent = (isPinned ? `“${textOf(selection)}” is pinned. Press Esc to clear the selection.` : help) + cut + unknown;
    const spot = state.spot && views[state.spot.view].readout.textContent;
    find(".status").textContent = [selection ? textOf(selection) : "", spot].filter(Boolean).join(": ");
  }

  /** Position the photo and the part of it that the model saw. */
  function placePhoto(view, panel) {
    const [left, top, right, bottom] = panel.seen;
    const [x, y, width, height] = state.show.cropped ? [left, top, right - left, bottom - top] : [0, 0, 1, 1];
    const aspect = (panel.size[0] * width) / (panel.size[1] * height);
    view.stage.style.aspectRatio = Math.min(Math.max(aspect, 1 / STRETCHED), STRETCHED);
    const put = (element, [l, t, w, h]) =>
      Object.assign(element.style, {
        left: `${(100 * (l - x)) / width}%`,
        top: `${(100 * (t - y)) / height}%`,
        width: `${(100 * w) / width}%`,
        height: `${(100 * h) / height}%`,
      });
    put(view.image, [0, 0, 1, 1]);
    put(view.seen, [left, top, right - left, bottom - top]);
  }

  // ---------------------------------------------------------------- building the page

  function make(tag, name = "", content = "") {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (content) element.textContent = content;
    return element;
  }

  function buildCaption() {
    const made = [];
    for (const [text, , , isWord] of data.pieces) {
      const element = isWord ? make("button", "word", text) : document.createTextNode(text);
      if (isWord) {
        const word = words[made.length];
        element.type = "button";
        element.tabIndex = made.length === (state.pinned?.[0] ?? 0) ? 0 : -1;
        element.classList.toggle("function", !isContent(word));
        element.classList.toggle("cut", isCutWord(word));
        element.classList.toggle("unknown", isUnknownWord(word));
        element.title = [isCutWord(word) && "truncated by the tokenizer", isUnknownWord(word) && "unknown to the tokenizer"].filter(Boolean).join(", ");
        made.push(element);
      }
      find(".caption").append(element);
    }
    if (!data.pieces.some(([text]) => text.trim())) find(".caption").append(make("i", "", "(no text)"));
    return made;
  }

  /** A view of each panel, or of each source of each panel. */
  function buildViews() {
    find(".panels").replaceChildren();
    Object.assign(state, { spot: null, region: null });
    const shown = panels.flatMap((panel, index) => {
      const own = state.source === ALL ? Object.keys(panel.maps) : [state.source];
      return own.map((source) => ({ panel, index, source }));
    });
    find(".panels").style.setProperty("--count", shown.length);
    views = shown.map(buildView);
    views.forEach(listenToView);
  }

  function buildView({ panel, index, source }) {
    const figure = make("figure", "panel");
    const heading = make("figcaption");
    const name = [panel.name, state.source === ALL && source].filter(Boolean).join(" · ");
    heading.append(make("b", "", name), make("span", "score", panel.score === null ? "" : `score ${number(panel.score)}`));
    const view = { panel, index, source, stage: make("div", "stage"), image: make("img"), seen: make("div", "seen"), canvas: make("canvas"), absent: make("div", "absent") };
    view.over = svg("svg", { viewBox: `0 0 ${panel.grid[1]} ${panel.grid[0]}`, preserveAspectRatio: "none" });
    view.image.src = data.photos[panel.photo];
    view.image.alt = "";
    view.stage.classList.toggle("small", Math.max(...panel.size) <= SMALL);
    view.stage.tabIndex = 0;
    view.stage.setAttribute("role", "application");
    view.stage.setAttribute("aria-label", `Map of ${name || "the model"} over the image, ${panel.grid.join(" by ")} patches; use the arrow keys to move between patches`);
    view.seen.append(view.canvas, view.over, view.absent);
    view.stage.append(view.image, view.seen);
    view.legend = make("div", "legend");
    view.bar = make("canvas");
    for (const name of ["low", "zero", "what", "high", "cutoff"]) view[name] = make("span", name);
    view.legend.append(view.bar, view.low, view.zero, view.what, view.high, view.cutoff);
    view.readout = make("p", "readout");
    view.note = make("p", "note");
    figure.append(heading, view.stage, view.legend, view.note, view.readout, ...buildRegions(view, panel, index));
    find(".panels").append(figure);
    return view;
  }

  function buildRegions(view, panel, index) {
    view.chosen = make("p", "note");
    view.chips = panel.regions.map((region, number) => {
      const chip = make("button", "", `${region[4].toFixed(2)}`);
      chip.type = "button";
      chip.setAttribute("aria-label", `Region ${number + 1}, confidence ${region[4].toFixed(2)}`);
      const choose = (value) => () => {
        state.region = value;
        changed();
      };
      for (const event of ["pointerenter", "focus"]) chip.addEventListener(event, choose([index, number]));
      for (const event of ["pointerleave", "blur"]) chip.addEventListener(event, choose(null));
      return chip;
    });
    if (!view.chips.length) return [];
    const details = make("details", "regions");
    const list = make("ol");
    list.append(...view.chips.map((chip) => {
      const item = make("li");
      item.append(chip);
      return item;
    }));
    details.append(make("summary", "", `${view.chips.length} proposed regions, by confidence`), list, view.chosen);
    return [details];
  }

  function buildChoice(key, values) {
    const field = find(`.choice[data-key="${key}"]`);
    const row = make("div");
    field.append(row);
    field.hidden = values.length < 2;
    for (const value of values) {
      const label = make("label", "", value);
      const input = make("input");
      Object.assign(input, { type: "radio", name: key, value, checked: state[key] === value });
      input.addEventListener("change", () => {
        set(key, value);
        changed();
      });
      label.prepend(input);
      row.append(label);
    }
  }

  function buildSlider(key) {
    const input = find(`.slider input[data-key="${key}"]`);
    const write = () => {
      state[key] = Number(input.value);
      input.nextElementSibling.textContent = `${input.value} %`;
      changed();
    };
    input.value = state[key];
    input.addEventListener("input", write);
    write();
  }

  function buildToggle(key, text) {
    const label = make("label");
    const input = make("input");
    Object.assign(input, { type: "checkbox", name: key, checked: state.show[key] });
    input.addEventListener("change", () => {
      state.show[key] = input.checked;
      changed();
    });
    label.append(input, text);
    find(".toggles").append(label);
  }

  // ---------------------------------------------------------------- mouse and keyboard

  function pin(range) {
    const same = state.pinned && range && state.pinned[0] === range[0] && state.pinned[1] === range[1];
    state.pinned = same ? null : range;
    if (same) state.hovered = null;
    changed();
  }

  function hover(range) {
    state.hovered = range;
    changed();
  }

  let dragged = null; // the word where the mouse button was pressed
  let anchor = 0; // the word at which a selection with Shift starts

  function listenToWords() {
    const caption = find(".caption");
    const wordAt = (event) => buttons.indexOf(root.elementFromPoint(event.clientX, event.clientY)?.closest(".word"));
    buttons.forEach((button, index) => {
      button.addEventListener("pointerenter", (event) => {
        if (!event.buttons) dragged = null; // The button was released outside the window.
        hover(dragged === null ? [index, index] : ordered(dragged, index));
      });
      button.addEventListener("focus", () => {
        buttons.forEach((other) => (other.tabIndex = other === button ? 0 : -1));
        if (button.matches(":focus-visible") && dragged === null) hover(ordered(anchor, index));
      });
      button.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        if (button.hasPointerCapture(event.pointerId)) button.releasePointerCapture(event.pointerId);
        if (!event.shiftKey) anchor = index;
        dragged = anchor;
        hover(ordered(dragged, index));
      });
    });
    caption.addEventListener("pointermove", (event) => {
      const over = dragged === null ? -1 : wordAt(event);
      if (over >= 0) hover(ordered(dragged, over));
    });
    caption.addEventListener("pointerleave", () => dragged === null && hover(null));
    caption.addEventListener("focusout", (event) => !caption.contains(event.relatedTarget) && hover(null));
    window.addEventListener("pointerup", () => {
      if (dragged === null) return;
      dragged = null;
      if (state.hovered) pin(state.hovered);
    });
    window.addEventListener("pointercancel", () => {
      dragged = null;
      hover(null);
    });
    caption.addEventListener("keydown", (event) => moveAlongWords(event, buttons.indexOf(event.target)));
  }

  function moveAlongWords(event, index) {
    const target = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (index < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") {
      pin(state.hovered ?? [index, index]);
    } else if (target !== undefined) {
      const next = Math.min(Math.max(target, 0), buttons.length - 1);
      if (!event.shiftKey) anchor = next;
      buttons[next].focus();
      hover(ordered(anchor, next));
    } else {
      return;
    }
    event.preventDefault();
  }

  function listenToView(view, place) {
    const { panel } = view;
    const point = (at) => {
      state.spot = at && { view: place, ...at };
      changed();
    };
    view.stage.addEventListener("pointermove", (event) => {
      const box = view.image.getBoundingClientRect();
      point({ x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height });
    });
    view.stage.addEventListener("pointerleave", () => point(null));
    view.stage.addEventListener("blur", () => point(null));
    view.stage.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const [rows, columns] = panel.grid;
      const now = state.spot && patchAt(panel, state.spot);
      const from = now ?? Math.floor(rows / 2) * columns + Math.floor(columns / 2);
      const moved = now === null ? [0, 0] : step;
      const row = Math.min(Math.max(Math.floor(from / columns) + moved[0], 0), rows - 1);
      const column = Math.min(Math.max((from % columns) + moved[1], 0), columns - 1);
      point(centerOf(panel, row * columns + column));
    });
  }

  function listenToKeys() {
    const help = find(".help");
    find(".ask").addEventListener("click", () => help.showModal());
    window.addEventListener("keydown", (event) => {
      const alone = document.querySelectorAll(".patchword-viewer").length === 1;
      if (!alone && !event.composedPath().includes(host)) return;
      if (event.key === "?") help.showModal();
      if (event.key === "Escape" && !help.open) {
        Object.assign(state, { pinned: null, hovered: null, spot: null });
        changed();
      }
    });
  }

  /** In a notebook the page is in a frame: fit the height of the frame to the page. */
  function fitFrame() {
    try {
      const frame = window.frameElement;
      if (!frame?.hasAttribute("data-fit")) return;
      new ResizeObserver(() => (frame.style.height = `${document.body.offsetHeight + 2}px`)).observe(document.body);
    } catch {
      // A frame without access to its parent page keeps its initial height.
    }
  }

  state.pinned = firstContent();
  const buttons = buildCaption();
  let views = [];
  buildViews();
  buildChoice("source", sources.length > 1 ? [...sources, ALL] : sources);
  buildChoice("scale", ["each map", "shared", "ranks"]);
  buildChoice("drawing", ["smooth", "patches"]);
  buildSlider("opacity");
  buildSlider("threshold");
  buildToggle("gray", "photo in gray");
  if (panels.some((panel) => panel.outlines.length)) buildToggle("outlines", "object outlines");
  if (panels.some((panel) => panel.pruned)) buildToggle("pruned", "pruned patches");
  if (panels.some((panel) => panel.regions.length)) buildToggle("regions", "regions");
  if (panels.some((panel) => panel.seen.join() !== "0,0,1,1")) buildToggle("cropped", "only the part that the model saw");
  listenToWords();
  listenToKeys();
  fitFrame();
  new ResizeObserver(changed).observe(find(".panels"));
  show();

  /** For other scripts on the page: functions that read and change the state. */
  host.viewer = {
    words: words.map((word) => word.text),
    select: (first, last = first) => {
      Object.assign(state, { pinned: [first, last], hovered: null });
      show();
    },
    set: (key, value) => {
      set(key, value);
      show();
    },
    maps: () => views.map((view) => (span() ? mapOf(view.panel, view.source, ...span()) : null)),
  };
})();
