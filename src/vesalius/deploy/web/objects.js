/* Single objects from the maps of a network, as deploy/run_objects.py finds them: maxima of depth that stand high enough
   above their saddles become seeds, the foreground is flooded from them with the places between objects last, holes are
   filled, small objects go.

   Arrays are flat with axes ([z,] y, x). Needs read.js and segment.js; runs in a page (globalThis.Separating) and in Node. */
(function (root) {
  "use strict";

  const Reading = root.Reading ?? require("./read.js");
  const Segmenting = root.Segmenting ?? require("./segment.js");
  const { product, rint } = Reading;
  const { strides, lines, cutOut, grown, neighbours, components } = Segmenting;
  const f32 = Math.fround;
  const LEVELS = 4095; // heights are whole steps, so that rounding decides nothing
  const TOLERANCE = 1.15, SCALES = [0.2, 5];

  const limited = (value) => Math.min(Math.max(value, 0), 1);
  const faces = (sides) => (sides.length === 2 ? 4 : 6);
  const corners = (sides) => (sides.length === 2 ? 8 : 26);

  /** A Gaussian over each axis, cut at three deviations, edges repeated. */
  function smoothed(values, sides, sigma) {
    if (!sigma || !values.length) return values;
    const reach = Math.trunc(3 * sigma + 0.5);
    const bell = Float64Array.from({ length: 2 * reach + 1 }, (_, k) => Math.exp(-0.5 * ((k - reach) / sigma) ** 2));
    const sum = bell.reduce((a, b) => a + b, 0);
    strides(sides).forEach((step, axis) => {
      const side = sides[axis], last = side - 1, out = new Float32Array(values.length);
      for (let i = 0; i < values.length; i++) {
        const place = Math.floor(i / step) % side, first = i - place * step;
        let total = 0;
        for (let k = -reach; k <= reach; k++) {
          total += (bell[k + reach] / sum) * values[first + Math.min(Math.max(place + k, 0), last) * step];
        }
        out[i] = total;
      }
      values = out;
    });
    return values;
  }

  /** Heights as whole numbers, with one voxel of zeros around. */
  function steps(values, sides) {
    const out = new Int32Array(product(grown(sides)));
    lines(grown(sides), sides.map(() => 1), sides, (to, from, long) => {
      for (let i = 0; i < long; i++) out[to + i] = rint(f32(values[from + i] * LEVELS));
    });
    return out;
  }

  /** Places inside from the highest down, equal heights in the order of the array. */
  function descending(peaks, inside) {
    const first = new Int32Array(LEVELS + 2);
    for (let at = 0; at < peaks.length; at++) if (inside[at]) first[LEVELS - peaks[at] + 1]++;
    for (let level = 0; level <= LEVELS; level++) first[level + 1] += first[level];
    const order = new Int32Array(first[LEVELS + 1]);
    for (let at = 0; at < peaks.length; at++) if (inside[at]) order[first[LEVELS - peaks[at]]++] = at;
    return order;
  }

  /** Maxima that stand at least `height` above the saddle that joins them to a higher one, from the top down. */
  function tops(peaks, order, moves, height) {
    const parent = new Int32Array(peaks.length).fill(-1), fall = new Int32Array(peaks.length);
    for (const at of order) {
      let mine = at;
      parent[at] = at;
      for (const move of moves) {
        let other = at + move;
        if (parent[other] < 0) continue;
        while (parent[other] !== other) other = parent[other] = parent[parent[other]];
        if (other === mine) continue;
        if (peaks[other] < peaks[mine]) [other, mine] = [mine, other];
        fall[mine] = peaks[mine] - peaks[at];
        parent[mine] = other;
        mine = other;
      }
    }
    return order.filter((at) => parent[at] === at || fall[at] >= height);
  }

  /** Numbers each maximum and all that is joined to it less than `height` below. */
  function marked(peaks, inside, seeds, moves, height) {
    const labels = new Int32Array(peaks.length);
    seeds.forEach((top, k) => {
      const floor = peaks[top] - height, room = [top];
      labels[top] = k + 1;
      while (room.length) {
        const at = room.pop();
        for (const move of moves) {
          const there = at + move;
          if (inside[there] && !labels[there] && peaks[there] > floor) {
            labels[there] = k + 1;
            room.push(there);
          }
        }
      }
    });
    return labels;
  }

  /** Grows the numbers over the foreground from high to low; equal heights in the order they are reached. */
  function flood(relief, inside, labels, moves) {
    const queues = Array.from({ length: LEVELS + 1 }, () => []);
    for (let at = 0; at < labels.length; at++) {
      if (labels[at] && moves.some((move) => inside[at + move] && !labels[at + move])) queues[relief[at]].push(at);
    }
    for (let level = LEVELS; level >= 0; level--) {
      const queue = queues[level];
      for (let n = 0; n < queue.length; n++) { // it grows while it is read
        for (const move of moves) {
          const there = queue[n] + move;
          if (inside[there] && !labels[there]) {
            labels[there] = labels[queue[n]];
            queues[Math.min(relief[there], level)].push(there);
          }
        }
      }
    }
  }

  /** Holes that a single object surrounds belong to it; those at the edge of the picture are none. */
  function fill(labels, sides) {
    const { numbers, sizes } = components(Uint8Array.from(labels, (label) => (label ? 0 : 1)), sides, faces(sides));
    const owner = new Int32Array(sizes.length + 1), steps = strides(sides), OUTSIDE = -1;
    for (let i = 0; i < labels.length; i++) {
      const hole = numbers[i];
      if (!hole || owner[hole] === OUTSIDE) continue;
      for (let axis = 0; axis < sides.length; axis++) {
        const place = Math.floor(i / steps[axis]) % sides[axis];
        for (const [edge, step] of [[0, -steps[axis]], [sides[axis] - 1, steps[axis]]]) {
          const beside = place === edge ? OUTSIDE : labels[i + step];
          if (beside && beside !== owner[hole]) owner[hole] = owner[hole] ? OUTSIDE : beside;
        }
      }
    }
    for (let i = 0; i < labels.length; i++) if (owner[numbers[i]] > 0) labels[i] = owner[numbers[i]];
  }

  /** Objects of at least `least` voxels, numbered by their first ones. */
  function renumbered(labels, least) {
    const sizes = sizesOf(labels), table = new Int32Array(sizes.length);
    let count = 0;
    return labels.map((label) => {
      if (!label || sizes[label] < least) return 0;
      return (table[label] ||= ++count);
    });
  }

  function sizesOf(labels) {
    const sizes = new Int32Array(labels.reduce((a, b) => Math.max(a, b), 0) + 1);
    for (const label of labels) sizes[label]++;
    return sizes;
  }

  /** Numbered objects from foreground, inner distance and border (3, *sides) in 0..1. */
  function decode(maps, sides, rule) {
    const count = product(sides), padded = grown(sides), one = sides.map(() => 1);
    const inside = new Uint8Array(product(padded)), threshold = f32(rule.threshold);
    const hills = new Float32Array(count), ground = new Float32Array(count);
    for (let i = 0; i < count; i++) {
      const depth = limited(maps[count + i]), close = limited(maps[2 * count + i]);
      hills[i] = depth * f32(1 - f32(0.5 * close));
      ground[i] = depth * f32(1 - f32(f32(0.99) * close));
    }
    lines(padded, one, sides, (to, from, long) => {
      for (let i = 0; i < long; i++) inside[to + i] = maps[from + i] >= threshold ? 1 : 0;
    });
    const peaks = steps(smoothed(hills, sides, rule.smooth), sides), relief = steps(ground, sides);
    const near = neighbours(padded, faces(sides)), far = neighbours(padded, corners(sides));
    const height = Math.max(1, rint(rule.seed_threshold * LEVELS));
    const labels = marked(peaks, inside, tops(peaks, descending(peaks, inside), far, height), far, height);
    flood(relief, inside, labels, near);
    flood(relief, inside, labels, far); // voxels that hang on their object by a corner
    const found = cutOut(labels, [1, ...padded], one, sides);
    fill(found, sides);
    return renumbered(found, rule.min_size);
  }

  /** Where objects are much larger or smaller than in training: the magnification that brings them to that size. */
  function betterScale(labels, sides, known, scale) {
    const sizes = sizesOf(labels).subarray(1).filter((n) => n > 0).sort();
    if (!known || sides.length !== 2 || sizes.length < 3) return null;
    const half = sizes.length >> 1, wide = (n) => 2 * Math.sqrt(n / Math.PI);
    const middle = sizes.length % 2 ? wide(sizes[half]) : (wide(sizes[half - 1]) + wide(sizes[half])) / 2;
    if (known[0] / TOLERANCE <= middle && middle <= known[2] * TOLERANCE) return null;
    return Math.min(Math.max((scale * known[1]) / middle, SCALES[0]), SCALES[1]);
  }

  /** Nearest values on another number of voxels. */
  function enlarged(values, shape, sides) {
    const [from, pad] = [strides(shape), Array(3 - sides.length).fill(1)];
    const index = sides.map((side, k) => Int32Array.from({ length: side }, (_, i) =>
      from[k] * Math.min(Math.floor(((i + 0.5) * shape[k]) / side), shape[k] - 1)));
    const [planes, rows, columns] = [...pad.map(() => Int32Array.of(0)), ...index];
    const out = new values.constructor(product(sides));
    let at = 0;
    for (const z of planes) for (const y of rows) for (const x of columns) out[at++] = values[z + y + x];
    return out;
  }

  async function objects(call, contract, scan, told) {
    const seen = Segmenting.conformed(contract, scan);
    const { values, shape } = await Segmenting.tiled(call, contract, seen, told);
    const maps = values.map((logit) => 1 / (1 + Math.exp(-Math.min(Math.max(logit, -30), 30))));
    const sides = shape.slice(1);
    return { seen, sides, labels: decode(maps, sides, contract.decode) };
  }

  /** The numbered objects as a mask {values, shape}, how many, their sizes and all their voxels; `told(n, of)` before each tile.

      Pictures whose objects are much larger or smaller than those of training are looked at again in the size of those. */
  async function segmented(call, contract, scan, told = async () => {}) {
    let found = await objects(call, contract, scan, told);
    const { conform, diameters } = contract;
    const scale = betterScale(found.labels, found.sides, diameters, conform.scale || 1);
    if (scale !== null && !conform.spacing_mm) {
      found = await objects(call, { ...contract, conform: { ...conform, scale } }, scan, told);
    }
    const { seen, sides, labels } = found;
    const mask = Segmenting.turnedBack(enlarged(labels, sides, seen.cut), 1, seen);
    const sizes = sizesOf(mask.values).subarray(1);
    return { mask, objects: sizes.length, sizes, voxels: [sizes.reduce((a, b) => a + b, 0)], unit: seen.unit };
  }

  const Separating = { segmented, decode };
  if (typeof module === "object" && module.exports) module.exports = Separating;
  else root.Separating = Separating;
})(globalThis);
