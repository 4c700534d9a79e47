/* The page: starts the model once, then reads and classifies every file that is chosen or dropped.

   contract.js, runtime.js and model.js have put what they hold into VESALIUS; read.js reads images; ort is ONNX Runtime.
   VESALIUS.page is for programs that drive the page: `ready` resolves to null or to what is wrong, `answer(n)` to the
   n-th answer (from 0) of this visit. */
(function () {
  "use strict";

  const kit = (globalThis.VESALIUS ??= {});
  const { contract, about } = kit;
  const page = (kit.page = { answers: [], ready: null, answer });
  const waiting = [];
  const byId = (id) => document.getElementById(id);
  const apart = contract?.decide === "objects";
  // No model is certain: the ends say "more than" and "less than".
  const percent = (p) => (p > 0.9995 ? "> 99.9 %" : p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);

  function made(tag, words = "", kind = "") {
    const node = document.createElement(tag);
    node.textContent = words;
    if (kind) node.className = kind;
    return node;
  }

  function show(id, words) {
    byId(id).textContent = words;
    byId(id).hidden = !words;
  }

  // --- the model -----------------------------------------------------------------------------------------------------

  /** Bytes of base64. */
  function decoded(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
    return bytes;
  }

  async function started() {
    const missing = [["contract.js", contract], ["ort.wasm.min.js", globalThis.ort], ["runtime.js", kit.runtime],
      ["model.js", kit.model], ["read.js", globalThis.Reading], ["segment.js", globalThis.Segmenting], ["objects.js", globalThis.Separating]].filter(([, there]) => !there);
    if (missing.length) throw new Error(`${missing[0][0]} is missing or damaged; copy the whole folder again`);
    const model = decoded(kit.model);
    // Without a secure context a browser has no checksums; a page opened from a disk or by https has.
    if (globalThis.crypto?.subtle) {
      const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", model));
      if ([...sum].map((byte) => byte.toString(16).padStart(2, "0")).join("") !== about.model_sha256) {
        throw new Error("model.js is not the model that this page was made with; export it again");
      }
    }
    // One thread: more would need headers that a static server or a disk does not send.
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.proxy = false;
    ort.env.logLevel = "error";
    const glue = URL.createObjectURL(new Blob([decoded(kit.runtime.glue)], { type: "text/javascript" }));
    ort.env.wasm.wasmPaths = { mjs: glue };
    ort.env.wasm.wasmBinary = await Reading.inflated(decoded(kit.runtime.wasm), "gzip");
    const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
    URL.revokeObjectURL(glue);
    kit.model = kit.runtime = null; // memory
    return session;
  }

  /** The answer to a scan, by the task of the model. */
  function computed(session, scan) {
    return contract.task === "segment" ? segmented(session, scan) : classified(session, scan);
  }

  /** Probabilities by class, and what the model says. */
  async function classified(session, scan) {
    const { values, shape } = Reading.prepared(scan, contract);
    const begin = performance.now();
    const found = await session.run({ image: new ort.Tensor("float32", values, [1, ...shape]) });
    const ms = performance.now() - begin;
    const { names, multilabel } = contract.labels;
    const said = Array.from(found.decision.data, Number);
    const probabilities = Object.fromEntries(names.map((name, k) => [name, found.probabilities.data[k]]));
    const decision = multilabel ? { classes: names.filter((_, k) => said[k]) } : { class: names[said[0]] };
    return { probabilities, ...decision, ms };
  }

  /** Voxels, volume or area of each structure, and how many objects; the mask itself goes into the picture. */
  async function segmented(session, scan) {
    const begin = performance.now();
    const call = async (given) => {
      const feeds = Object.entries(given).map(([name, [values, shape]]) => [name, new ort.Tensor("float32", values, shape)]);
      return (await session.run(Object.fromEntries(feeds))).logits.data;
    };
    const told = async (n, of) => {
      show("state", `Computing tile ${n + 1} of ${of} …`);
      await painted();
    };
    const found = await (apart ? Separating : Segmenting).segmented(call, contract, scan, told);
    view.mask = found.mask;
    const flat = found.mask.shape.length === 3, [size, unit] = flat ? [1, "mm²"] : [1000, "ml"];
    const measured = (voxels) => ({ voxels, ...(scan.spacing === null ? {} : { size: (voxels * found.unit) / size, unit }) });
    const structures = contract.structures.map((name, k) => ({ name, ...measured(found.voxels[k]) }));
    const counted = apart ? { objects: found.objects, median_object: measured(median(found.sizes)) } : {};
    return { structures, ...counted, ms: performance.now() - begin };
  }

  function median(sizes) {
    const sorted = sizes.filter((n) => n > 0).sort(), half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : sorted.length ? (sorted[half - 1] + sorted[half]) / 2 : 0;
  }

  /** For programs: the mask of the last answer, little-endian numbers of one, two or four bytes, layers first. */
  page.mask = () => {
    const { values, shape } = view.mask, width = values.BYTES_PER_ELEMENT;
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    if (bytes.toBase64) return { shape, width, letters: bytes.toBase64() };
    let text = "";
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return { shape, width, letters: btoa(text) };
  };

  // --- one file after the other --------------------------------------------------------------------------------------

  let session = null;
  let view = {}; // what the picture shows: scan, mask, name, draw
  let queue = Promise.resolve();

  function take(files) {
    for (const file of files) queue = queue.then(() => asked(file));
  }

  async function asked(file) {
    let entry = { file: file.name };
    cleared();
    if (session !== null) {
      show("state", `Reading ${file.name} …`);
      try {
        const begin = performance.now();
        const scan = await Reading.read(new Uint8Array(await file.arrayBuffer()), file);
        const read_ms = performance.now() - begin;
        preview(scan, file.name);
        show("state", "Computing …");
        await painted();
        entry = { ...entry, form: scan.form, exact: scan.exact, ...(await computed(session, scan)), read_ms };
        view.draw();
      } catch (error) {
        entry.error = error instanceof Reading.Refused ? error.message : `cannot be computed here (${error.message ?? error})`;
      }
    } else entry.error = "the model did not start";
    report(entry);
    page.answers.push(entry);
    for (const { n, tell } of waiting) if (n < page.answers.length) tell(page.answers[n]);
  }

  function answer(n) {
    return new Promise((tell) => {
      if (n < page.answers.length) tell(page.answers[n]);
      else waiting.push({ n, tell });
    });
  }

  /** After the browser has shown what was written; a page in the background draws nothing and does not wait. */
  function painted() {
    return new Promise((tell) => {
      if (document.hidden) tell();
      else requestAnimationFrame(() => setTimeout(tell, 0));
      setTimeout(tell, 200);
    });
  }

  // --- what is shown -------------------------------------------------------------------------------------------------

  /** Takes the last image and its answer away, so that nobody reads it as that of the next one. */
  function cleared() {
    for (const id of ["shown", "bars", "said", "why", "times", "note", "keep"]) byId(id).hidden = true;
    view = {};
    byId("state").classList.remove("alarm");
  }

  function report(entry) {
    const wrong = entry.error ?? "";
    byId("state").classList.toggle("alarm", Boolean(wrong));
    show("state", wrong && `${entry.file}: ${wrong}.`);
    if (wrong) return;
    const cells = entry.structures ? structures(entry.structures, entry) : classes(entry);
    show("times", `Computed in ${spent(entry.ms)}, read in ${spent(entry.read_ms)}, on this device.`);
    show("note", entry.exact ? "" : "Decoded by the browser: values may differ from those of training by a grey level. PNG, DICOM and NIfTI are read exactly.");
    const row = made("tr");
    row.append(made("th", entry.file), ...cells, made("td", spent(entry.ms), "n"));
    byId("rows").prepend(row);
    byId("history").hidden = false;
  }

  /** Shows classes; returns the cells of the list of answers. */
  function classes(entry) {
    const said = entry.classes ?? [entry.class];
    show("said", said.join(", ") || "none of the classes");
    show("why", reason());
    bars(entry.probabilities, said);
    const best = Math.max(...(said.length ? said.map((name) => entry.probabilities[name]) : Object.values(entry.probabilities)));
    return [made("td", said.join(", ") || "none"), made("td", percent(best), "n")];
  }

  /** Shows the sizes of structures; returns the cells of the list of answers. */
  function structures(found, { objects, median_object: middle }) {
    const list = byId("bars"), there = found.filter(({ voxels }) => voxels);
    const whole = found.length === 1 ? `${found[0].name}: ${sized(found[0])}` : `${there.length} of ${found.length} structures`;
    const many = `${objects} ${objects === 1 ? "object" : "objects"}`;
    show("said", apart ? many : whole);
    show("why", `${apart && objects ? `The median object has ${sized(middle)}. Each has a colour of its own. ` : ""}The mask lies over the picture; its slider makes it fainter or stronger.`);
    list.replaceChildren();
    found.forEach((one, k) => {
      const bar = made("div", "", one.voxels ? "bar yes" : "bar"), name = made("span", "", "name"), key = made("span", "", "key");
      key.style.background = colourOf(k);
      name.append(...(apart ? [] : [key]), one.name);
      bar.setAttribute("role", "listitem");
      bar.append(name, made("span", sized(one), "value"));
      list.append(bar);
    });
    for (const id of ["bars", "keep", "covers"]) byId(id).hidden = false;
    if (apart) return [made("td", `${many}, ${sized(found[0])}`)];
    return [made("td", there.map((one) => `${one.name} ${sized(one)}`).join(", ") || "none")];
  }

  function sized({ voxels, size, unit }) {
    const what = `${voxels.toLocaleString("en")} ${contract.conform.dims === 2 ? "pixels" : "voxels"}`;
    return size === undefined ? what : `${size.toPrecision(3) >= 1000 ? size.toFixed(0) : size.toPrecision(3)} ${unit}`;
  }

  /** Of a label map the first class is the background. */
  const colourOf = (k) => contract.labels.colours[contract.decide === "regions" ? k : k + 1];

  function reason() {
    const { names, multilabel, positive } = contract.labels;
    if (multilabel) return "Classes with a probability of at least one half; several may hold at once.";
    if (about.threshold !== null && names.length === 2) {
      return `“${names[positive]}” is said from a probability of ${percent(about.threshold)} on, the threshold that validation chose.`;
    }
    return "The most probable class.";
  }

  function spent(ms) {
    return ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(1)} s`;
  }

  function bars(probabilities, said) {
    const list = byId("bars");
    list.replaceChildren();
    let names = Object.keys(probabilities);
    if (names.length > 4) names = names.sort((a, b) => probabilities[b] - probabilities[a]);
    const marked = contract.labels.multilabel ? null : contract.labels.names[contract.labels.positive];
    for (const name of names) {
      const p = probabilities[name];
      const bar = made("div", "", said.includes(name) ? "bar yes" : "bar");
      bar.setAttribute("role", "listitem");
      const track = made("div", "", "track"), fill = made("div", "", "fill");
      fill.style.width = `${100 * p}%`;
      track.append(fill);
      if (about.threshold !== null && names.length === 2 && name === marked) {
        const mark = made("div", "", "mark");
        mark.style.left = `${100 * about.threshold}%`;
        mark.title = `threshold ${percent(about.threshold)}`;
        track.append(mark);
      }
      const value = made("span", percent(p), "value");
      value.title = p.toPrecision(7);
      bar.append(made("span", name, "name"), value, track);
      list.append(bar);
    }
    list.hidden = false;
  }

  /** Draws the values that were read; of a volume one slice, the middle one at first. */
  function preview(scan, name) {
    const sides = scan.shape.slice(1);
    const [depth, height, width] = sides.length === 3 ? sides : [1, ...sides];
    const [low, high] = ends(scan);
    const slice = byId("slice");
    [slice.max, slice.value] = [depth, Math.ceil(depth / 2)];
    byId("slices").hidden = depth === 1;
    byId("covers").hidden = true;
    view = { scan, mask: null, name };
    view.draw = () => {
      byId("slice-name").textContent = `${slice.value} of ${depth}`;
      drawn(view, { z: slice.value - 1, depth, height, width, low, high });
    };
    slice.oninput = byId("cover").oninput = view.draw;
    view.draw();
    byId("picture").setAttribute("aria-label", `The image ${name}`);
    show("caption", `${name}. ${scan.form}.`);
    byId("shown").hidden = false;
  }

  /** Black and white of the picture: 8 bit as they are, else without the outermost half percent of the values. */
  function ends(scan) {
    if (scan.depth === 255) return [0, 255];
    const step = Math.max(1, Math.floor(scan.values.length / 50000));
    const some = [];
    for (let i = 0; i < scan.values.length; i += step) some.push(Number(scan.values[i]));
    some.sort((a, b) => a - b);
    const [low, high] = [some[Math.floor(0.005 * some.length)], some[Math.floor(0.995 * (some.length - 1))]];
    return [low, high > low ? high : low + 1];
  }

  function drawn({ scan, mask }, { z, depth, height, width, low, high }) {
    const canvas = byId("picture");
    [canvas.width, canvas.height] = [width, height];
    const pen = canvas.getContext("2d"), picture = pen.createImageData(width, height);
    const plane = height * width, colours = scan.shape[0] === 3, part = byId("cover").value / 100;
    const paints = painter();
    // A volume with a place in the patient is shown from the feet, front up, as readers are used to.
    const upside = depth > 1 && scan.affine !== null && scan.affine[1][1] < 0;
    const mirrored = depth > 1 && scan.affine !== null && scan.affine[0][2] < 0;
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at += 4) {
        const i = z * plane + (upside ? height - 1 - y : y) * width + (mirrored ? width - 1 - x : x);
        for (let c = 0; c < 3; c++) {
          picture.data[at + c] = (255 * (Number(scan.values[(colours ? c : 0) * depth * plane + i]) - low)) / (high - low);
        }
        for (const [red, green, blue] of mask === null ? [] : paints(mask, i)) {
          picture.data[at] += (red - picture.data[at]) * part;
          picture.data[at + 1] += (green - picture.data[at + 1]) * part;
          picture.data[at + 2] += (blue - picture.data[at + 2]) * part;
        }
        picture.data[at + 3] = 255;
      }
    }
    pen.putImageData(picture, 0, 0);
    const [tall, wide] = scan.spacing === null ? [1, 1] : scan.spacing.slice(-2);
    canvas.style.aspectRatio = `${width * wide} / ${height * tall}`;
    canvas.classList.toggle("fine", width < 300);
  }

  /** The colours at a voxel of a mask. */
  function painter() {
    if (contract.task !== "segment") return () => [];
    const rgb = contract.structures.map((_, k) => [1, 3, 5].map((at) => parseInt(colourOf(k).slice(at, at + 2), 16)));
    if (contract.decide === "regions") {
      return ({ values, shape }, i) => rgb.filter((_, k) => values[(k * values.length) / shape[0] + i]);
    }
    if (apart) return ({ values }, i) => (values[i] ? [ofObject(values[i])] : []);
    return ({ values }, i) => (values[i] ? [rgb[values[i] - 1]] : []);
  }

  /** Red, green and blue of an object: numbers that follow one another are a golden angle apart on the wheel of hues. */
  const known = [];
  function ofObject(number) {
    const light = [0.5, 0.65, 0.4][number % 3];
    return (known[number] ??= [0, 8, 4].map((shift) => {
      const k = (shift + (number * 137.508) / 30) % 12; // from hue and lightness, fully saturated
      return 255 * (light - Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1)));
    }));
  }

  function describe() {
    byId("kind").textContent = `${contract.task === "segment" ? "Segmentation" : "Classification"} in this browser`;
    byId("share").hidden = contract.task === "segment";
    document.title = about.title;
    show("title", about.title);
    show("purpose", about.purpose);
    for (const [name, value] of about.facts) byId("facts").append(made("dt", name), made("dd", value));
    let part = byId("card");
    for (const block of about.card) {
      if (block.kind === "section") {
        part = made("details");
        part.append(made("summary", block.text));
        byId("card").append(part);
      } else part.append(drawnBlock(block));
    }
    byId("foot").append(made("p", about.made));
  }

  /** A block of the model card; its text is never read as HTML. */
  function drawnBlock(block) {
    if (block.kind === "table") {
      const table = made("table"), head = made("thead"), body = made("tbody");
      block.rows.forEach((cells, n) => {
        const row = made("tr");
        row.append(...cells.map((cell, k) => made(n === 0 || k === 0 ? "th" : "td", cell)));
        (n === 0 ? head : body).append(row);
      });
      table.append(head, body);
      const around = made("div", "", "scroll");
      around.append(table);
      return around;
    }
    if (block.kind !== "list") return made({ warning: "blockquote", code: "pre" }[block.kind] ?? "p", block.text);
    const list = made("ul");
    list.append(...block.items.map((item) => made("li", item)));
    return list;
  }

  function save() {
    const facts = { model: about.title, bundle: contract.bundle, made_by: contract.made_by, answers: page.answers };
    download("answers.json", JSON.stringify(facts, null, 2), "application/json");
  }

  async function saveMask() {
    const stem = view.name.replace(/\.gz$/i, "").replace(/\.[^.]*$/, "");
    download(`${stem}-mask.nii.gz`, await Segmenting.niftiOf(view.mask, view.scan), "application/gzip");
  }

  function download(name, content, type) {
    const link = made("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function listen() {
    const input = byId("file"), drop = byId("drop");
    input.addEventListener("change", () => {
      take([...input.files]);
      input.value = ""; // the same file may be chosen again
    });
    byId("save").addEventListener("click", save);
    byId("mask").addEventListener("click", saveMask);
    // Anywhere on the page, so that a near miss does not make the browser leave it.
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
    document.addEventListener("dragleave", () => drop.classList.remove("over"));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      take([...event.dataTransfer.files]);
    });
  }

  page.ready = (async () => {
    try {
      if (contract) describe();
      session = await started();
      listen();
      show("state", "The model is ready. Choose an image.");
      return null;
    } catch (error) {
      byId("state").classList.add("alarm");
      show("state", `The model cannot start: ${error.message ?? error}.`);
      return String(error.message ?? error);
    }
  })();
})();
