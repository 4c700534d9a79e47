/* Masks: from a scan to the tiles that the network sees and back to the voxels of the file, as deploy/runner.py does it.

   Arrays are flat with axes (channels, [z,] y, x). Needs read.js; runs in a page (globalThis.Segmenting) and in Node. */
(function (root) {
  "use strict";

  const Reading = root.Reading ?? require("./read.js");
  const { Refused, product, rint } = Reading;
  const f32 = Math.fround;
  const ROBUST = [0.5, 99.5], AIR = 0.1, SAMPLES = 2 ** 21;
  const MOST_LOGITS = 2 ** 28;

  // --- turning and cutting -------------------------------------------------------------------------------------------

  const strides = (shape) => shape.map((_, k) => product(shape.slice(k + 1)));

  /** Channels stay; the other axes are put in the order `axes`, then turned round where `flips` says so. */
  function rearranged(values, shape, axes, flips) {
    const [channels, ...sides] = shape, steps = strides(shape);
    const order = axes.map((axis) => [sides[axis], steps[1 + axis]]);
    const padded = [...Array(3 - axes.length).fill([1, 0]), ...order];
    const turned = [...Array(3 - axes.length).fill(false), ...flips];
    const [start, step] = [padded.map(([n, s], k) => (turned[k] ? (n - 1) * s : 0)), padded.map(([, s], k) => (turned[k] ? -s : s))];
    const out = new values.constructor(values.length);
    let at = 0;
    for (let c = 0; c < channels; c++) {
      for (let i = 0; i < padded[0][0]; i++) {
        for (let j = 0; j < padded[1][0]; j++) {
          let from = c * steps[0] + start[0] + start[1] + start[2] + i * step[0] + j * step[1];
          for (let k = 0; k < padded[2][0]; k++, from += step[2]) out[at++] = values[from];
        }
      }
    }
    return { values: out, shape: [channels, ...order.map(([n]) => n)] };
  }

  /** Calls put(index in whole, index in part) for every line of the box that starts at `low`; lines run along x. */
  function lines(whole, low, part, put) {
    const pad = (sides, filler) => [...Array(3 - sides.length).fill(filler), ...sides];
    const [, height, width] = pad(whole, 1), [a, b, c] = pad(low, 0), [planes, rows, columns] = pad(part, 1);
    for (let z = 0; z < planes; z++) {
      for (let y = 0; y < rows; y++) put(((a + z) * height + b + y) * width + c, (z * rows + y) * columns, columns);
    }
  }

  function cutOut(values, shape, low, sides) {
    const [channels, ...whole] = shape, count = product(whole), size = product(sides);
    const out = new values.constructor(channels * size);
    for (let c = 0; c < channels; c++) {
      lines(whole, low, sides, (from, to, long) => out.set(values.subarray(c * count + from, c * count + from + long), c * size + to));
    }
    return out;
  }

  /** Which axis of the file runs along patient z, y, x, and whether it runs the other way. */
  function pose(affine) {
    if (affine === null) return { axes: [0, 1, 2], flips: [false, false, false] };
    const long = [0, 1, 2].map((a) => Math.hypot(affine[0][a], affine[1][a], affine[2][a]));
    const along = [2, 1, 0].map((row) => [0, 1, 2].map((a) => affine[row][a] / long[a]));
    let axes = null, best = -1;
    for (const order of [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]) {
      const sum = order.reduce((total, a, k) => total + Math.abs(along[k][a]), 0);
      if (sum > best) [axes, best] = [order, sum];
    }
    return { axes, flips: axes.map((axis, k) => along[k][axis] < 0) };
  }

  /** First and one past the last plane of every axis outside which each channel has one and the same value. */
  function usedBox(values, shape) {
    const [channels, ...sides] = shape, count = product(sides), steps = strides(sides);
    const low = sides.map(() => Infinity), high = sides.map(() => 0);
    for (let c = 0; c < channels; c++) {
      for (let i = 0; i < count; i++) {
        if (values[c * count + i] === values[c * count]) continue;
        for (let axis = 0; axis < sides.length; axis++) {
          const place = Math.floor(i / steps[axis]) % sides[axis];
          if (place < low[axis]) low[axis] = place;
          if (place >= high[axis]) high[axis] = place + 1;
        }
      }
    }
    return [low.map((v) => (v === Infinity ? 0 : v)), high.map((v, k) => v || sides[k])];
  }

  // --- intensities ---------------------------------------------------------------------------------------------------

  /** Percentiles of numbers that are sorted, between neighbours by a straight line. */
  function percentiles(sorted, wanted) {
    return wanted.map((percent) => {
      const place = (percent / 100) * (sorted.length - 1), low = Math.floor(place);
      const next = sorted[Math.min(low + 1, sorted.length - 1)];
      return f32(sorted[low] + (next - sorted[low]) * (place - low));
    });
  }

  /** Factor and shift of every channel, from the part that is used. */
  function normal(values, shape, spec) {
    const rule = spec.normalise, channels = shape[0];
    const each = (rule_) => Float32Array.from({ length: channels }, (_, c) => rule_(c));
    if (rule.kind === "none") return { scale: each(() => 1), shift: each(() => 0) };
    if (rule.kind === "fixed") {
      const [mean, std] = [rule.mean, rule.std].map((list) => [list].flat());
      return { scale: each((c) => 1 / std[c % std.length]), shift: each((c) => -mean[c % mean.length] / std[c % std.length]) };
    }
    const some = sampled(values, shape, spec.window);
    if (rule.kind === "percentile") {
      const all = new Float32Array(some.reduce((total, part) => total + part.length, 0));
      some.forEach((part, c) => all.set(part, c * part.length));
      const [low, high] = percentiles(all.sort(), ROBUST);
      const width = Math.max(high - low, 1e-6);
      return { scale: each(() => 4 / width), shift: each(() => (-4 * low) / width - 2) };
    }
    const found = some.map(body);
    return { scale: each((c) => 1 / found[c][1]), shift: each((c) => -found[c][0] / found[c][1]) };
  }

  /** Sorted values of each channel on a coarser grid where there are many, cut to the window. */
  function sampled(values, shape, window) {
    const [channels, ...sides] = shape, count = product(sides);
    const step = Math.max(1, Math.ceil(count / SAMPLES));
    const every = step === 1 ? 1 : Math.max(1, rint(step ** (1 / sides.length)));
    const kept = sides.map((side) => Math.ceil(side / every));
    const steps = strides(sides), size = product(kept), own = strides(kept);
    const [low, high] = window ? window.map(f32) : [-Infinity, Infinity];
    return Array.from({ length: channels }, (_, c) => {
      const part = new Float32Array(size);
      for (let i = 0; i < size; i++) {
        let from = c * count;
        for (let axis = 0; axis < sides.length; axis++) from += (Math.floor(i / own[axis]) % kept[axis]) * every * steps[axis];
        part[i] = Math.min(Math.max(values[from], low), high);
      }
      return part.sort();
    });
  }

  /** Mean and deviation of what is no air, of sorted values. */
  function body(sorted) {
    const smallest = sorted[0];
    let same = 0;
    while (same < sorted.length && sorted[same] === smallest) same++;
    const [low, high] = percentiles(sorted, ROBUST);
    const air = same / sorted.length > 0.02 ? smallest : f32(low + f32(f32(AIR) * f32(high - low)));
    let first = 0;
    while (first < sorted.length && sorted[first] <= air) first++;
    const inside = sorted.length - first > 16 ? sorted.subarray(first) : sorted;
    let sum = 0, squares = 0;
    for (const value of inside) sum += value;
    const mean = sum / inside.length;
    for (const value of inside) squares += (value - mean) ** 2;
    return [mean, Math.max(Math.sqrt(squares / inside.length), 1e-6)];
  }

  // --- a case and its tiles ------------------------------------------------------------------------------------------

  function resampled(values, shape, sides) {
    let now = { values, shape };
    sides.forEach((side, k) => {
      if (now.shape[k + 1] !== side) now = Reading.resampledAxis(now.values, now.shape, k + 1, side);
    });
    return now;
  }

  /** A scan as the network sees it, with what is needed on the way back. */
  function conformed(contract, scan) {
    const spec = contract.conform;
    let { values, shape } = Reading.withChannels(scan.values, scan.shape, spec.channels);
    if (shape.length === 4 && spec.dims === 2 && shape[1] === 1) shape = [shape[0], shape[2], shape[3]];
    const dims = shape.length - 1;
    if (dims !== spec.dims) throw new Refused(`the model needs images of ${spec.dims} dimensions, this one has ${dims}`);
    if (!values.every(Number.isFinite)) throw new Refused("some values are not finite numbers; replace them first");
    const plain = { axes: shape.slice(1).map((_, k) => k), flips: shape.slice(1).map(() => false) };
    const { axes, flips } = dims === 3 && (spec.orient ?? true) ? pose(scan.affine) : plain;
    ({ values, shape } = rearranged(values, shape, axes, flips));
    const whole = shape.slice(1);
    const [low, high] = spec.crop === "border" ? usedBox(values, shape) : [whole.map(() => 0), whole];
    const cut = low.map((a, k) => high[k] - a);
    values = cutOut(values, shape, low, cut);
    const { scale, shift } = normal(values, [shape[0], ...cut], spec);
    if (spec.window) {
      const [bottom, top] = spec.window.map(f32);
      for (let i = 0; i < values.length; i++) values[i] = Math.min(Math.max(values[i], bottom), top);
    }
    const known = scan.spacing === null ? null : scan.spacing.slice(-dims);
    const spacing = known === null ? null : axes.map((axis) => known[axis]);
    const unit = known === null ? 1 : product(known);
    const sides = cut.map((n, k) => spec.spacing_mm && spacing ? (n * spacing[k]) / spec.spacing_mm[k] : n * (spec.scale || 1));
    const seen = resampled(values, [shape[0], ...cut], sides.map((n) => Math.max(1, rint(n))));
    return { ...seen, scale, shift, axes, flips, whole, low, cut, unit };
  }

  /** First voxels of the tiles along one axis. */
  function starts(side, patch, overlap, slack) {
    const step = Math.max(1, Math.trunc(patch * (1 - overlap)));
    const steps = Math.ceil((side - patch) / step), fewer = Math.ceil((side - patch) / step - slack);
    if (fewer > 0 && fewer < steps && side - patch <= fewer * patch) {
      return Array.from({ length: fewer + 1 }, (_, k) => rint((k * (side - patch)) / fewer));
    }
    return Array.from({ length: Math.max(0, steps) + 1 }, (_, k) => Math.min(k * step, side - patch));
  }

  /** Weights of a tile: a Gaussian of each axis, not below a floor. */
  function gaussian(patch, sigma, floor) {
    let line = new Float32Array([1]);
    for (const side of patch) {
      const own = Float32Array.from({ length: side }, (_, i) => Math.exp(f32((i - (side - 1) / 2) ** 2) / f32(-2 * (sigma * side) ** 2)));
      const next = new Float32Array(line.length * side);
      for (let i = 0; i < line.length; i++) for (let k = 0; k < side; k++) next[i * side + k] = line[i] * own[k];
      line = next;
    }
    const least = f32(Math.max(line.reduce((a, b) => Math.min(a, b), Infinity), floor));
    return line.map((value) => Math.max(value, least));
  }

  /** Logits (K, *S): the mean of all tiles over a voxel. `call` takes {tiles, scale, shift} and gives (K, *patch). */
  async function tiled(call, contract, seen, told) {
    const { patch, overlap, slack, sigma, floor } = contract.tile;
    const [channels, ...sides] = seen.shape, classes = contract.decide === "objects" ? 3 : contract.labels.names.length;
    const padded = sides.map((side, k) => Math.max(side, patch[k]));
    const before = sides.map((side, k) => Math.floor((padded[k] - side) / 2));
    const count = product(padded), size = product(patch), inner = product(sides);
    if (count * Math.max(classes, channels) > MOST_LOGITS) throw new Refused(`a volume of ${sides.join(" × ")} is too large for this page`);
    // The network must see 0 outside of the image: the value that becomes 0.
    const whole = new Float32Array(channels * count);
    for (let c = 0; c < channels; c++) {
      whole.fill(-seen.shift[c] / seen.scale[c], c * count, (c + 1) * count);
      lines(padded, before, sides, (to, from, long) => whole.set(seen.values.subarray(c * inner + from, c * inner + from + long), c * count + to));
    }
    const line = gaussian(patch, sigma, floor);
    const total = new Float32Array(classes * count), weight = new Float32Array(count);
    let corners = [[]];
    padded.forEach((side, k) => {
      const first = starts(side, patch[k], overlap, slack);
      corners = corners.flatMap((corner) => first.map((place) => [...corner, place]));
    });
    for (const [n, corner] of corners.entries()) {
      await told(n, corners.length);
      const tile = cutOut(whole, [channels, ...padded], corner, patch);
      const found = await call({ tiles: [tile, [1, channels, ...patch]], scale: [seen.scale, [channels]], shift: [seen.shift, [channels]] });
      lines(padded, corner, patch, (to, from, long) => {
        for (let i = 0; i < long; i++) weight[to + i] += line[from + i];
        for (let k = 0; k < classes; k++) {
          for (let i = 0; i < long; i++) total[k * count + to + i] += f32(found[k * size + from + i] * line[from + i]);
        }
      });
    }
    for (let k = 0; k < classes; k++) for (let i = 0; i < count; i++) total[k * count + i] /= weight[i];
    return { values: cutOut(total, [classes, ...padded], before, sides), shape: [classes, ...sides] };
  }

  // --- the way back --------------------------------------------------------------------------------------------------

  /** Layers (K, *S) of 0 and 1 for regions, else one label map (1, *S), on the grid of the file. */
  function back(contract, seen, logits) {
    const regions = contract.decide === "regions", classes = logits.shape[0];
    const size = product(logits.shape.slice(1)), cut = product(seen.cut);
    const layers = regions ? classes : 1;
    const small = new (regions || classes < 256 ? Uint8Array : Uint16Array)(layers * cut);
    let best = null;
    for (let k = 0; k < classes; k++) {
      const one = resampled(logits.values.subarray(k * size, (k + 1) * size), [1, ...logits.shape.slice(1)], seen.cut).values;
      if (regions) for (let i = 0; i < cut; i++) small[k * cut + i] = one[i] > 0 ? 1 : 0;
      else if (best === null) best = one.slice();
      else {
        for (let i = 0; i < cut; i++) {
          if (one[i] > best[i]) [best[i], small[i]] = [one[i], k];
        }
      }
    }
    const mask = turnedBack(small, layers, seen);
    for (const step of contract.post ?? []) cleanedLayers(mask, step, seen.unit, regions);
    return mask;
  }

  /** Layers of the part that was cut out, on the whole grid of the file; 0 where nothing was looked at. */
  function turnedBack(small, layers, seen) {
    const cut = product(seen.cut), count = product(seen.whole), whole = new small.constructor(layers * count);
    for (let k = 0; k < layers; k++) {
      lines(seen.whole, seen.low, seen.cut, (to, from, long) => whole.set(small.subarray(k * cut + from, k * cut + from + long), k * count + to));
    }
    const same = seen.axes.map((_, k) => k), order = same.map((k) => seen.axes.indexOf(k));
    const flipped = rearranged(whole, [layers, ...seen.whole], same, seen.flips);
    return rearranged(flipped.values, flipped.shape, order, same.map(() => false));
  }

  function cleanedLayers({ values, shape }, step, unit, regions) {
    const [layers, ...sides] = shape, count = product(sides);
    if (!regions) return clean(values, sides, step, unit);
    if (step.label !== null) return clean(values.subarray(step.label * count, (step.label + 1) * count), sides, { ...step, label: 1 }, unit);
    const union = new Uint8Array(count);
    for (let i = 0; i < values.length; i++) union[i % count] |= values[i];
    clean(union, sides, step, unit);
    for (let i = 0; i < layers * count; i++) values[i] *= union[i % count];
  }

  /** Components below a volume and all but the largest go, holes are filled; `labels` is changed. */
  function clean(labels, sides, step, unit) {
    const inside = Uint8Array.from(labels, (v) => (step.label === null ? v !== 0 : v === step.label));
    const near = step.connectivity ?? (sides.length === 3 ? 26 : 8);
    const { numbers, sizes } = components(inside, sides, near);
    if (sizes.length === 0) return;
    const enough = sizes.map((n) => n * unit >= (step.min_volume ?? 0) * (1 - 1e-9));
    const most = sizes.reduce((best, n, k) => (enough[k] && n > best ? n : best), -1);
    const stay = sizes.map((n, k) => enough[k] && (step.keep !== "largest" || n === most));
    for (let i = 0; i < labels.length; i++) {
      if (inside[i] && !stay[numbers[i] - 1]) labels[i] = inside[i] = 0;
    }
    if (step.fill_holes && step.label !== null) {
      const around = { 26: 6, 18: 6, 6: 26, 8: 4, 4: 8 }[near];
      const hidden = holes(inside, sides, around);
      for (let i = 0; i < labels.length; i++) if (hidden[i] && labels[i] === 0) labels[i] = step.label;
    }
  }

  const grown = (sides) => sides.map((side) => side + 2);

  /** Offsets to the neighbours of a voxel in an array with these sides. */
  function neighbours(sides, near) {
    const reach = { 4: 1, 6: 1, 8: 2, 18: 2, 26: 3 }[near], steps = strides(sides);
    let moves = [[]];
    for (let k = 0; k < sides.length; k++) moves = moves.flatMap((move) => [-1, 0, 1].map((a) => [...move, a]));
    return moves.filter((move) => { const far = move.reduce((n, a) => n + Math.abs(a), 0); return far > 0 && far <= reach; })
      .map((move) => move.reduce((at, a, k) => at + a * steps[k], 0));
  }

  /** From one voxel to all that hang together with it; `open` is 1 where it may go and becomes 0 where it has been. */
  function flooded(open, start, moves, visit) {
    const stack = [start];
    open[start] = 0;
    let size = 0;
    while (stack.length) {
      const at = stack.pop();
      size++;
      visit(at);
      for (const move of moves) {
        if (open[at + move]) {
          open[at + move] = 0;
          stack.push(at + move);
        }
      }
    }
    return size;
  }

  /** The number of its connected part for every voxel (0 outside), and the sizes of the parts. */
  function components(inside, sides, near) {
    const padded = grown(sides), one = sides.map(() => 1), moves = neighbours(padded, near);
    const open = new Uint8Array(product(padded)), marks = new Int32Array(open.length), sizes = [];
    lines(padded, one, sides, (to, from, long) => open.set(inside.subarray(from, from + long), to));
    for (let i = 0; i < open.length; i++) {
      if (open[i]) sizes.push(flooded(open, i, moves, (at) => { marks[at] = sizes.length + 1; }));
    }
    return { numbers: cutOut(marks, [1, ...padded], one, sides), sizes };
  }

  /** 1 where the background is cut off from the outside. */
  function holes(inside, sides, around) {
    const padded = grown(sides), one = sides.map(() => 1);
    const open = new Uint8Array(product(padded)).fill(1);
    lines(padded, one, sides, (to, from, long) => { for (let i = 0; i < long; i++) open[to + i] = 1 - inside[from + i]; });
    // Around the outermost layer, which is open, stands a wall: a step never leads from one end of a line to the next line.
    const walled = grown(padded), field = new Uint8Array(product(walled));
    lines(walled, one, padded, (to, from, long) => field.set(open.subarray(from, from + long), to));
    flooded(field, strides(walled).reduce((a, b) => a + b, 0), neighbours(walled, around), () => {});
    return cutOut(cutOut(field, [1, ...walled], one, padded), [1, ...padded], one, sides);
  }

  /** The mask {values, shape} with layers first, and voxels of each structure; `told(n, of)` before each tile. */
  async function segmented(call, contract, scan, told = async () => {}) {
    const seen = conformed(contract, scan);
    const logits = await tiled(call, contract, seen, told);
    const mask = back(contract, seen, logits);
    const regions = contract.decide === "regions", count = product(mask.shape.slice(1));
    const voxels = contract.structures.map((_, k) => {
      let n = 0;
      if (regions) for (let i = k * count; i < (k + 1) * count; i++) n += mask.values[i];
      else for (let i = 0; i < count; i++) n += mask.values[i] === k + 1 ? 1 : 0;
      return n;
    });
    return { mask, voxels, unit: seen.unit };
  }

  // --- NIfTI-1 of a mask ---------------------------------------------------------------------------------------------

  /** Bytes of a .nii.gz with the geometry of the scan; layers stand along the fourth axis. */
  async function niftiOf(mask, scan) {
    const layers = mask.shape[0], sides = mask.shape.slice(1).reverse();
    const head = new Uint8Array(352), view = new DataView(head.buffer), little = scan.little ?? true;
    if (scan.header) head.set(scan.header);
    else {
      view.setInt32(0, 348, little);
      [1, ...[...(scan.spacing ?? sides.map(() => 1))].reverse(), 1, 1, 1, 1, 1].slice(0, 8).forEach((v, k) => view.setFloat32(76 + 4 * k, v, little));
      head[123] = scan.spacing === null ? 0 : 2;
    }
    const shape = layers === 1 ? sides : [...sides, ...Array(3 - sides.length).fill(1), layers];
    [shape.length, ...shape, 1, 1, 1, 1, 1].slice(0, 8).forEach((v, k) => view.setInt16(40 + 2 * k, v, little));
    const bytes = mask.values.BYTES_PER_ELEMENT;
    view.setInt16(70, { 1: 2, 2: 512, 4: 8 }[bytes], little);
    view.setInt16(72, 8 * bytes, little);
    [352, 1, 0].forEach((v, k) => view.setFloat32(108 + 4 * k, v, little));
    head.set([0x6e, 0x2b, 0x31, 0, 0, 0, 0, 0], 344);
    const stream = new Blob([head, ordered(mask.values, little)]).stream().pipeThrough(new CompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /** The values in the order of bytes of a file. */
  function ordered(values, little) {
    if (values.BYTES_PER_ELEMENT === 1) return values;
    const view = new DataView(new ArrayBuffer(values.byteLength));
    const set = values.BYTES_PER_ELEMENT === 2 ? view.setUint16 : view.setInt32;
    for (let i = 0; i < values.length; i++) set.call(view, i * values.BYTES_PER_ELEMENT, values[i], little);
    return view.buffer;
  }

  const tools = { strides, lines, cutOut, grown, neighbours, components, conformed, tiled, turnedBack };
  const Segmenting = { segmented, clean, niftiOf, ...tools };
  if (typeof module === "object" && module.exports) module.exports = Segmenting;
  else root.Segmenting = Segmenting;
})(globalThis);
