/* Reads the images that a model is asked about: PNG, uncompressed DICOM and NIfTI-1 to the last bit, as Vesalius does,
   and whatever else the browser can show. Then channels and spacing, as the contract of the model says.

   A scan is {values, shape, spacing, affine, form, exact, depth}: a flat typed array with axes (channels, [z,] y, x), its
   shape, mm between pixels in that order without channels (or null), index (z, y, x, 1) to patient LPS mm as four rows
   (or null), the format in words, whether the decoder is ours, and the largest value that 8 or 16 bit can hold (or null).

   The file needs no other and runs in a page (globalThis.Reading) and in Node (require). */
(function (root) {
  "use strict";

  const f32 = Math.fround;
  const MOST_SAMPLES = 2 ** 28; // a header that asks for more is a mistake or an attack

  class Refused extends Error {}

  const ascii = (bytes, at, count) => String.fromCharCode(...bytes.subarray(at, at + count));
  const product = (sides) => sides.reduce((total, side) => total * side, 1);

  /** Whole numbers with halves to the even neighbour, as Python and NumPy round. */
  function rint(x) {
    const low = Math.floor(x);
    const rest = x - low;
    if (rest !== 0.5) return rest < 0.5 ? low : low + 1;
    return low % 2 === 0 ? low : low + 1;
  }

  /** Decompressed bytes; kind is deflate (zlib) or gzip. */
  async function inflated(bytes, kind) {
    try {
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream(kind));
      return new Uint8Array(await new Response(stream).arrayBuffer());
    } catch {
      throw new Refused("the compressed data are broken or truncated; copy the file again");
    }
  }

  /** Any file, by its content. */
  async function read(bytes, blob = null) {
    let data = bytes;
    if (data[0] === 0x1f && data[1] === 0x8b) data = await inflated(data, "gzip");
    if (ascii(data, 0, 8) === "\x89PNG\r\n\x1a\n") return readPng(data);
    if (ascii(data, 128, 4) === "DICM") return readDicom(data);
    const magic = ascii(data, 344, 4);
    if (magic === "n+1\0") return readNifti(data);
    if (magic === "ni1\0" || ascii(data, 4, 3) === "n+2") {
      throw new Refused("this kind of NIfTI is not read here; save it as NIfTI-1 in one file (.nii, .nii.gz)");
    }
    return readPicture(blob ?? new Blob([data]));
  }

  // --- PNG (ISO/IEC 15948) -------------------------------------------------------------------------------------------

  // Column, row and steps of the seven passes of an interlaced picture.
  const ADAM7 = [
    [0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2],
  ];
  const SAMPLES = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
  const DEPTHS = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] };
  const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
    let c = n;
    for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
    return c;
  });

  function crc(bytes, from, to) {
    let c = 0xffffffff;
    for (let i = from; i < to; i++) c = CRC[(c ^ bytes[i]) & 255] ^ (c >>> 8);
    return (c ^ 0xffffffff) >>> 0;
  }

  async function readPng(bytes) {
    const { head, palette, clear, packed } = pngChunks(bytes);
    const { width, height, depth, kind, interlaced } = head;
    const samples = SAMPLES[kind];
    const raw = await inflated(packed, "deflate");
    const grid = depth === 16 ? new Uint16Array(width * height * samples) : new Uint8Array(width * height * samples);
    const passes = interlaced ? ADAM7 : [[0, 0, 1, 1]];
    let at = 0;
    for (const [x0, y0, dx, dy] of passes) {
      const columns = Math.ceil((width - x0) / dx);
      const rows = Math.ceil((height - y0) / dy);
      if (columns > 0 && rows > 0) {
        at = pngPass(raw, at, { columns, rows, depth, samples }, (row, column, sample, value) => {
          grid[((y0 + row * dy) * width + x0 + column * dx) * samples + sample] = value;
        });
      }
    }
    const size = `${width} × ${height}`;
    return { ...pngColours(grid, { width, height, depth, kind, palette, clear }),
      spacing: null, affine: null, exact: true, form: `PNG, ${size}, ${depth} bit` };
  }

  /** Header, palette, transparency and the compressed pixels; what is damaged is refused. */
  function pngChunks(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const parts = [];
    let head = null, palette = null, clear = null, ended = false;
    for (let at = 8; at + 12 <= bytes.length && !ended;) {
      const size = view.getUint32(at);
      const kind = ascii(bytes, at + 4, 4);
      if (at + 12 + size > bytes.length) break;
      const body = bytes.subarray(at + 8, at + 8 + size);
      // A chunk whose name starts with a capital cannot be done without.
      if (kind < "a" && crc(bytes, at + 4, at + 8 + size) !== view.getUint32(at + 8 + size)) {
        throw new Refused("a damaged PNG (a checksum is wrong); copy the file again");
      }
      if (kind === "IHDR") head = pngHead(view, at + 8);
      else if (kind === "PLTE") palette = body;
      else if (kind === "tRNS") clear = body;
      else if (kind === "IDAT") parts.push(body);
      else if (kind === "acTL" && view.getUint32(at + 8) > 1) throw new Refused("an animation; save the frame that is meant");
      else if (kind === "eXIf" && orientation(body) > 1) throw new Refused("turned by an EXIF tag; save it upright");
      else if (kind === "IEND") ended = true;
      at += 12 + size;
    }
    if (head === null || !ended || (head.kind === 3 && palette === null)) {
      throw new Refused("a truncated PNG; copy the file again");
    }
    if (clear !== null && (head.depth === 16 || (head.kind === 0 && head.depth < 8))) {
      throw new Refused(`a PNG of ${head.depth} bit with one transparent colour; save it without transparency`);
    }
    return { head, palette, clear, packed: joined(parts) };
  }

  function pngHead(view, at) {
    const [width, height] = [view.getUint32(at), view.getUint32(at + 4)];
    const [depth, kind, interlaced] = [view.getUint8(at + 8), view.getUint8(at + 9), view.getUint8(at + 12)];
    if (!(DEPTHS[kind] ?? []).includes(depth) || !width || !height || interlaced > 1) {
      throw new Refused("a PNG with a header that no PNG has; export the file again");
    }
    limited([SAMPLES[kind], height, width]);
    return { width, height, depth, kind, interlaced };
  }

  /** Orientation (tag 274) in EXIF data, 1 if there is none. */
  function orientation(body) {
    if (body.length < 8) return 1;
    const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
    const little = ascii(body, 0, 2) === "II";
    const start = view.getUint32(4, little);
    if (start + 2 > body.length) return 1;
    const count = view.getUint16(start, little);
    for (let k = 0; k < count && start + 14 + 12 * k <= body.length; k++) {
      if (view.getUint16(start + 2 + 12 * k, little) === 274) return view.getUint16(start + 10 + 12 * k, little);
    }
    return 1;
  }

  function joined(parts) {
    const whole = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
    let at = 0;
    for (const part of parts) {
      whole.set(part, at);
      at += part.length;
    }
    return whole;
  }

  /** The lines of one pass, their filters undone (section 9.2), sample by sample; returns where the next pass starts. */
  function pngPass(raw, start, { columns, rows, depth, samples }, put) {
    const step = Math.max(1, (samples * depth) >> 3);
    const long = Math.ceil((columns * samples * depth) / 8);
    if (start + rows * (1 + long) > raw.length) throw new Refused("a truncated PNG; copy the file again");
    let above = new Uint8Array(long);
    let at = start;
    for (let row = 0; row < rows; row++) {
      const kind = raw[at];
      const line = raw.slice(at + 1, at + 1 + long);
      if (kind > 4) throw new Refused("a damaged PNG (an unknown filter); copy the file again");
      if (kind > 0) unfiltered(kind, line, above, step);
      for (let column = 0, k = 0; column < columns; column++) {
        for (let sample = 0; sample < samples; sample++, k++) put(row, column, sample, sampleOf(line, k, depth));
      }
      above = line;
      at += 1 + long;
    }
    return at;
  }

  function sampleOf(line, k, depth) {
    if (depth === 8) return line[k];
    if (depth === 16) return (line[2 * k] << 8) | line[2 * k + 1];
    const bit = k * depth;
    return (line[bit >> 3] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
  }

  function unfiltered(kind, line, above, step) {
    for (let x = 0; x < line.length; x++) {
      const left = x >= step ? line[x - step] : 0;
      const up = above[x];
      let add = 0;
      if (kind === 1) add = left;
      else if (kind === 2) add = up;
      else if (kind === 3) add = (left + up) >> 1;
      else {
        const corner = x >= step ? above[x - step] : 0;
        const a = Math.abs(up - corner), b = Math.abs(left - corner), c = Math.abs(left + up - 2 * corner);
        add = a <= b && a <= c ? left : b <= c ? up : corner;
      }
      line[x] = (line[x] + add) & 255;
    }
  }

  /** Palette, transparency and few bits to grey (1, y, x) or colour (3, y, x); what shows through is black. */
  function pngColours(grid, { width, height, depth, kind, palette, clear }) {
    const count = width * height;
    const opaque = depth === 16 ? 65535 : 255;
    const [channels, colour, alpha] = kind === 3 ? fromPalette(grid, palette, clear) : fromSamples(grid, depth, kind, clear);
    const values = new grid.constructor(channels * count);
    for (let i = 0; i < count; i++) {
      const part = alpha === null ? opaque : alpha(i);
      for (let c = 0; c < channels; c++) {
        const value = colour(i, c);
        values[c * count + i] = part === opaque ? value : rint(value * (part / opaque));
      }
    }
    return { values, shape: [channels, height, width], depth: opaque };
  }

  function fromPalette(grid, palette, clear) {
    const entry = (i, c) => palette[3 * grid[i] + c] ?? 0;
    let grey = true;
    for (let i = 0; i < grid.length && grey; i++) grey = entry(i, 0) === entry(i, 1) && entry(i, 1) === entry(i, 2);
    return [grey ? 1 : 3, entry, clear === null ? null : (i) => clear[grid[i]] ?? 255];
  }

  function fromSamples(grid, depth, kind, clear) {
    const samples = SAMPLES[kind];
    const scale = depth < 8 ? 255 / ((1 << depth) - 1) : 1;
    const channels = samples < 3 ? 1 : 3;
    const colour = (i, c) => grid[i * samples + c] * scale;
    if (samples !== channels) return [channels, colour, (i) => grid[(i + 1) * samples - 1]];
    if (clear === null) return [channels, colour, null];
    // One colour stands for "nothing here"; it is written with 16 bit.
    const gone = Array.from({ length: channels }, (_, c) => (clear[2 * c] << 8) | clear[2 * c + 1]);
    return [channels, colour, (i) => (gone.every((value, c) => grid[i * samples + c] === value) ? 0 : 255)];
  }

  // --- DICOM (PS3.5, PS3.10) -----------------------------------------------------------------------------------------

  const LONG = new Set(["OB", "OW", "OF", "OD", "OL", "OV", "SQ", "UC", "UN", "UR", "UT", "SV", "UV"]);

  /** One image without compression, rescaled; MONOCHROME1 is turned round. */
  function readDicom(bytes) {
    const [meta, at] = elements(bytes, 132, bytes.length, true, (group) => group !== 2);
    const syntax = wordsOf(meta, 0x00020010);
    if (syntax !== "1.2.840.10008.1.2" && syntax !== "1.2.840.10008.1.2.1") {
      throw new Refused(`expected uncompressed little-endian DICOM, found transfer syntax ${syntax || "(none)"}`);
    }
    const [one] = elements(bytes, at, bytes.length, syntax.endsWith(".1"), () => false);
    const number = (tag, otherwise) => (one.has(tag) ? one.get(tag)[0] | (one.get(tag)[1] << 8) : otherwise);
    const [rows, columns, samples] = [number(0x00280010, 0), number(0x00280011, 0), number(0x00280002, 1)];
    const [bits, signed] = [number(0x00280100, 16), number(0x00280103, 0)];
    const light = wordsOf(one, 0x00280004) || "MONOCHROME2";
    const frames = numbersOf(one, 0x00280008);
    if (!one.has(0x7fe00010) || (frames !== null && frames[0] !== 1)) {
      throw new Refused("expected the pixels of one image; convert series to NIfTI");
    }
    if (![8, 16, 32].includes(bits) || !["MONOCHROME1", "MONOCHROME2", "RGB"].includes(light)) {
      throw new Refused(`expected grey or RGB of 8, 16 or 32 bit, found ${light} of ${bits} bit; convert it to PNG`);
    }
    limited([samples, rows, columns]);
    const Kind = { 8: [Uint8Array, Int8Array], 16: [Uint16Array, Int16Array], 32: [Uint32Array, Int32Array] }[bits][signed ? 1 : 0];
    const count = rows * columns * samples;
    const body = one.get(0x7fe00010);
    if (!count || body.length < (count * bits) / 8) throw new Refused("fewer pixels than the header says; copy the file again");
    const stored = numbered(body, Kind, count, true);
    const flat = samples > 1 && !number(0x00280006, 0) ? channelsFirst(stored, samples) : stored;
    const values = mapped(flat, dicomValue(one, light, number(0x00280101, bits), signed));
    const spacing = numbersOf(one, 0x00280030) ?? numbersOf(one, 0x00181164);
    return { values, shape: [samples, rows, columns], spacing, affine: null, exact: true, depth: null,
      form: `DICOM, ${columns} × ${rows}, ${bits} bit` };
  }

  /** From a stored number to a value of the image. */
  function dicomValue(one, light, stored, signed) {
    const ends = signed ? -1 : 2 ** stored - 1; // the sum of the smallest and the largest number
    const slope = numbersOf(one, 0x00281053), shift = numbersOf(one, 0x00281052);
    const [factor, offset] = [slope === null ? 1 : slope[0], shift === null ? 0 : shift[0]];
    return (value) => (light === "MONOCHROME1" ? ends - value : value) * factor + offset;
  }

  function wordsOf(found, tag) {
    const body = found.get(tag);
    return body === undefined ? "" : ascii(body, 0, body.length).replace(/[\0 ]+$/, "").trim();
  }

  function numbersOf(found, tag) {
    const text = wordsOf(found, tag);
    if (!text) return null;
    const values = text.split("\\").map(Number);
    return values.every(Number.isFinite) ? values : null;
  }

  /** Map of elements (group << 16 | element) from `start` on, and where it stopped; sequences are passed over. */
  function elements(bytes, start, end, explicit, stop) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const found = new Map();
    let at = start;
    while (at + 8 <= end) {
      const group = view.getUint16(at, true), tag = group * 65536 + view.getUint16(at + 2, true);
      if (stop(group)) break;
      const kind = explicit && group !== 0xfffe ? ascii(bytes, at + 4, 2) : "";
      let size = 0, head = 8;
      if (LONG.has(kind)) {
        if (at + 12 > end) break;
        [size, head] = [view.getUint32(at + 8, true), 12];
      } else size = kind ? view.getUint16(at + 6, true) : view.getUint32(at + 4, true);
      at += head;
      if (tag === 0xfffee00d || tag === 0xfffee0dd) return [found, at];
      if (size === 0xffffffff || tag === 0xfffee000) {
        const inner = size === 0xffffffff ? end : Math.min(end, at + size);
        // What hides in an unknown element is written without types (PS3.5, 6.2.2).
        at = elements(bytes, at, inner, explicit && kind !== "UN", () => false)[1];
        continue;
      }
      found.set(tag, bytes.subarray(at, Math.min(at + size, end)));
      at += size;
    }
    return [found, at];
  }

  // --- NIfTI-1 (nifti1.h) --------------------------------------------------------------------------------------------

  const NIFTI = {
    2: Uint8Array, 4: Int16Array, 8: Int32Array, 16: Float32Array, 64: Float64Array, 128: Uint8Array, 256: Int8Array,
    512: Uint16Array, 768: Uint32Array, 1024: BigInt64Array, 1280: BigUint64Array,
  };
  const MM = { 1: 1000, 2: 1, 3: 0.001 };

  function readNifti(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const little = view.getInt32(0, true) === 348;
    const int16 = (at) => view.getInt16(at, little);
    const float = (at) => view.getFloat32(at, little);
    const sides = Array.from({ length: Math.max(0, Math.min(7, int16(40))) }, (_, k) => int16(42 + 2 * k));
    while (sides.length > 3 && sides.at(-1) === 1) sides.pop();
    // Time runs along the fourth axis, the channels of a voxel along the fifth.
    if (sides.length === 4) throw new Refused(`a fourth axis of length ${sides[3]}; save one volume`);
    if (sides.length === 5 && sides[3] === 1) sides.splice(3, 1);
    const code = int16(70), Kind = NIFTI[code], colours = code === 128;
    if (Kind === undefined || sides.length < 2 || sides.length > (colours ? 3 : 4) || Math.min(...sides) < 1) {
      throw new Refused(`expected real numbers in 2 or 3 axes, found type ${code} and sides ${sides.join(" × ")}`);
    }
    const count = product(sides) * (colours ? 3 : 1), start = float(108);
    limited([count]);
    if (start + count * Kind.BYTES_PER_ELEMENT > bytes.length) throw new Refused("a truncated NIfTI file; copy it again");
    const stored = numbered(bytes.subarray(start), Kind, count, little);
    const slope = float(112), inter = float(116);
    const scaled = slope !== 0 && Number.isFinite(slope) && !(slope === 1 && inter === 0);
    const plain = colours ? channelsFirst(stored, 3) : stored;
    const big = Kind === BigInt64Array || Kind === BigUint64Array;
    // x runs fastest in the file, as in (channels, z, y, x): the order of the numbers stays.
    const values = scaled || big ? mapped(plain, (v) => (scaled ? Number(v) * slope + inter : Number(v))) : plain;
    const shape = [...(sides.length === 4 ? [] : [colours ? 3 : 1]), ...[...sides].reverse()];
    return { values, shape, ...niftiPlace(view, bytes, little, shape.length - 1), exact: true, depth: null,
      header: bytes.slice(0, 348), little, form: `NIfTI-1, ${sides.join(" × ")}` };
  }

  /** Affine and spacing: sform, else qform, else the voxel size if it has a unit. */
  function niftiPlace(view, bytes, little, dims) {
    const float = (at) => view.getFloat32(at, little);
    const qform = view.getInt16(252, little), sform = view.getInt16(254, little);
    const pixdim = Array.from({ length: 8 }, (_, k) => float(76 + 4 * k));
    const unit = MM[bytes[123] & 7] ?? 1;
    let rows = null;
    if (sform > 0) rows = [0, 1, 2].map((r) => [0, 1, 2, 3].map((c) => float(280 + 16 * r + 4 * c)));
    else if (qform > 0) rows = quaternion(Array.from({ length: 6 }, (_, k) => float(256 + 4 * k)), pixdim);
    if (rows === null) {
      const steps = pixdim.slice(1, 1 + dims).reverse().map((step) => Math.abs(step) * unit);
      const known = (bytes[123] & 7) in MM && steps.every((step) => Number.isFinite(step) && step > 0);
      return { affine: null, spacing: known ? steps : null };
    }
    // Columns (i, j, k) become (z, y, x); RAS becomes LPS.
    const affine = rows.map((row, r) => [row[2], row[1], row[0], row[3]].map((v) => v * unit * (r < 2 ? -1 : 1)));
    const spacing = [0, 1, 2].map((c) => Math.hypot(affine[0][c], affine[1][c], affine[2][c]));
    return { affine: [...affine, [0, 0, 0, 1]], spacing: spacing.slice(3 - dims) };
  }

  function quaternion([b, c, d, x, y, z], pixdim) {
    const a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d));
    const turn = [
      [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
      [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
      [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ];
    const steps = [Math.abs(pixdim[1]), Math.abs(pixdim[2]), Math.abs(pixdim[3]) * (pixdim[0] < 0 ? -1 : 1)];
    return turn.map((row, r) => [...row.map((v, k) => v * steps[k]), [x, y, z][r]]);
  }

  // --- what the browser can decode -----------------------------------------------------------------------------------

  async function readPicture(blob) {
    if (typeof createImageBitmap === "undefined") throw new Refused("expected a PNG, NIfTI-1 or uncompressed DICOM file");
    let bitmap = null;
    try {
      bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
    } catch {
      throw new Refused("expected PNG, JPEG or another picture, NIfTI-1, or an uncompressed DICOM image");
    }
    const { width, height } = bitmap;
    limited([4, height, width]);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const pen = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
    pen.drawImage(bitmap, 0, 0);
    bitmap.close();
    const { data } = pen.getImageData(0, 0, width, height);
    const count = width * height;
    const values = new Uint8Array(3 * count);
    let grey = true;
    for (let i = 0; i < count; i++) {
      const part = data[4 * i + 3];
      for (let c = 0; c < 3; c++) values[c * count + i] = part === 255 ? data[4 * i + c] : rint(data[4 * i + c] * (part / 255));
      grey = grey && values[i] === values[count + i] && values[i] === values[2 * count + i];
    }
    return { values: grey ? values.slice(0, count) : values, shape: [grey ? 1 : 3, height, width], spacing: null,
      affine: null, exact: false, depth: 255, form: `${(blob.type || "picture").replace("image/", "").toUpperCase()}, ${width} × ${height}` };
  }

  // --- from a scan to the input of the model -------------------------------------------------------------------------

  function limited(shape) {
    if (product(shape) > MOST_SAMPLES) throw new Refused(`an image of ${shape.join(" × ")} numbers is too large for this page`);
  }

  /** Numbers of one kind from bytes that may lie at any address, in either order. */
  function numbered(bytes, Kind, count, little) {
    const size = Kind.BYTES_PER_ELEMENT;
    const copy = bytes.slice(0, count * size);
    if (!little && size > 1) for (let at = 0; at < copy.length; at += size) copy.subarray(at, at + size).reverse();
    return new Kind(copy.buffer, 0, count);
  }

  function mapped(source, rule) {
    const out = new Float32Array(source.length);
    for (let i = 0; i < out.length; i++) out[i] = rule(source[i]);
    return out;
  }

  function channelsFirst(flat, channels) {
    const count = flat.length / channels;
    const values = new flat.constructor(flat.length);
    for (let i = 0; i < count; i++) for (let c = 0; c < channels; c++) values[c * count + i] = flat[i * channels + c];
    return values;
  }

  /** Grey as three equal colours, colours as grey (ITU-R BT.601, in float32 step by step as torch does it). */
  function withChannels(values, shape, wanted) {
    const [have, ...sides] = shape;
    const count = product(sides);
    if (have === wanted) return { values: mapped(values, Number), shape };
    const out = new Float32Array(wanted * count);
    if (have === 1 && wanted === 3) {
      for (let c = 0; c < 3; c++) out.set(values, c * count);
    } else if (have === 3 && wanted === 1) {
      const [red, green, blue] = [f32(0.299), f32(0.587), f32(0.114)];
      for (let i = 0; i < count; i++) {
        const warm = f32(f32(f32(values[i]) * red) + f32(f32(values[count + i]) * green));
        out[i] = warm + f32(f32(values[2 * count + i]) * blue);
      }
    } else throw new Refused(`the model needs ${wanted} channels, the image has ${have}`);
    return { values: out, shape: [wanted, ...sides] };
  }

  /** One axis to another number of pixels: a triangle around each new centre, as wide as the wider of both pixels. */
  function resampledAxis(values, shape, axis, target) {
    const source = shape[axis], step = source / target;
    const [before, after] = [product(shape.slice(0, axis)), product(shape.slice(axis + 1))];
    const out = new Float32Array(before * target * after);
    const width = Math.max(step, 1);
    for (let t = 0; t < target; t++) {
      const centre = (t + 0.5) * step - 0.5;
      const first = Math.max(0, Math.floor(centre - width));
      const line = [];
      for (let s = first; s < source && s <= centre + width; s++) line.push(Math.max(0, 1 - Math.abs(s - centre) / width));
      const sum = line.reduce((total, weight) => total + weight, 0);
      const weights = Float32Array.from(line, (weight) => weight / sum);
      for (let b = 0; b < before; b++) {
        const from = (b * source + first) * after, to = (b * target + t) * after;
        for (let k = 0; k < after; k++) {
          let total = 0;
          for (let s = 0; s < weights.length; s++) total += values[from + s * after + k] * weights[s];
          out[to + k] = total;
        }
      }
    }
    return { values: out, shape: shape.map((side, k) => (k === axis ? target : side)) };
  }

  /** What the model is given: float32 values and their shape, channels first.

      Refuses images with another number of axes or channels than the contract's, and values that are not numbers. */
  function prepared(scan, contract) {
    let { values, shape } = withChannels(scan.values, scan.shape, contract.channels);
    if (shape.length === 4 && contract.dims === 2 && shape[1] === 1) shape = [shape[0], shape[2], shape[3]];
    if (shape.length !== contract.dims + 1) {
      throw new Refused(`the model needs images of ${contract.dims} dimensions, this one has ${shape.length - 1}`);
    }
    if (!values.every(Number.isFinite)) throw new Refused("some values are not finite numbers; replace them first");
    const spacing = scan.spacing === null ? null : scan.spacing.slice(-contract.dims);
    if (contract.spacing_mm && spacing !== null) {
      contract.spacing_mm.forEach((wanted, k) => {
        const side = Math.max(1, rint((shape[k + 1] * spacing[k]) / wanted));
        if (side !== shape[k + 1]) ({ values, shape } = resampledAxis(values, shape, k + 1, side));
      });
    }
    return { values, shape };
  }

  const Reading = { Refused, read, prepared, withChannels, resampledAxis, inflated, product, rint };
  if (typeof module === "object" && module.exports) module.exports = Reading;
  else root.Reading = Reading;
})(globalThis);
