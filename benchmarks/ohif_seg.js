/* Reads the segmentations of cases.json as OHIF does and counts the voxels that say something else; see ohif_seg.py. */

const fs = require("fs");

// The viewer's library looks for a browser when it is loaded; nothing is drawn here.
globalThis.window = globalThis.self = globalThis;
globalThis.document = { createElement: () => ({ getContext: () => null, style: {} }), addEventListener() {} };
const { adaptersSEG } = require("@cornerstonejs/adapters");
const core = require("@cornerstonejs/core");

let known = {};
const facts = {
  imagePlaneModule: (one) => ({
    rows: one.rows, columns: one.columns, frameOfReferenceUID: one.frame, imagePositionPatient: one.position,
    imageOrientationPatient: one.orientation, rowCosines: one.orientation.slice(0, 3),
    columnCosines: one.orientation.slice(3), pixelSpacing: one.spacing, rowPixelSpacing: one.spacing[0],
    columnPixelSpacing: one.spacing[1],
  }),
  imagePixelModule: (one) => ({
    rows: one.rows, columns: one.columns, bitsAllocated: 16, bitsStored: 16, highBit: 15, samplesPerPixel: 1,
    photometricInterpretation: "MONOCHROME2", pixelRepresentation: 1,
  }),
  generalSeriesModule: (one) => ({ seriesInstanceUID: one.series, modality: "CT" }),
  generalImageModule: (one) => ({ sopInstanceUID: one.sop }),
  sopCommonModule: (one) => ({ sopInstanceUID: one.sop }),
  instance: (one) => ({
    SOPInstanceUID: one.sop, SeriesInstanceUID: one.series, FrameOfReferenceUID: one.frame, Rows: one.rows,
    Columns: one.columns, ImageOrientationPatient: one.orientation, ImagePositionPatient: one.position,
    PixelSpacing: one.spacing,
  }),
};
const provider = { get: (kind, id) => (known[id] && facts[kind] ? facts[kind](known[id]) : undefined) };
core.metaData.addProvider((kind, id) => provider.get(kind, id), 100);

async function wrong(one) {
  known = Object.fromEntries(one.images.map((image) => [image.id, image]));
  core.cache.purgeCache();
  const bytes = fs.readFileSync(one.seg);
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  const found = await adaptersSEG.Cornerstone3D.Segmentation.createFromDICOMSegBuffer(
    one.images.map((image) => image.id), buffer, { metadataProvider: provider, tolerance: 1e-3 });
  let count = 0;
  one.truth.forEach((layers, place) => {
    const maps = found.labelMapImages.map((group) => group[place].voxelManager.getScalarData());
    for (let voxel = 0; voxel < layers[0].length; voxel++) {
      if (one.layers) {
        layers.forEach((layer, number) => {
          count += maps.some((map) => map[voxel] === number + 1) !== (layer[voxel] === 1);
        });
      } else {
        count += maps[0][voxel] !== layers[0][voxel];
      }
    }
  });
  const names = found.segMetadata.data.filter(Boolean).map((segment) => segment.SegmentLabel);
  return `${one.name}: ${count} voxels differ; ${names.join(", ")}`;
}

(async () => {
  for (const one of JSON.parse(fs.readFileSync("cases.json", "utf8"))) console.log(await wrong(one));
  process.exit(0);
})();
