// The EXIF orientation of WebP files: Chromium does not obey it, the model does.

// How 1 to 8 turn the unit square: a, b, c, d, e, f of a canvas transform.
const TURNS = [
  [1, 0, 0, 1, 0, 0], [-1, 0, 0, 1, 1, 0], [-1, 0, 0, -1, 1, 1], [1, 0, 0, -1, 0, 1],
  [0, 1, 1, 0, 0, 0], [0, 1, -1, 0, 1, 0], [0, -1, -1, 0, 1, 1], [0, -1, 1, 0, 0, 1],
];

/** Turn what is drawn as an orientation says, so that it fills the canvas. */
export function turn(context, { width, height }, orientation) {
  const [a, b, c, d, e, f] = TURNS[orientation - 1];
  context.setTransform(a, b, c, d, e * width, f * height);
}

/** Return the orientation of a WebP file, from 1 (upright) to 8; 0 where the file is none. */
export async function webpOrientation(file) {
  const head = new DataView(await file.slice(0, 12).arrayBuffer());
  if (head.byteLength < 12 || text(head, 0) !== "RIFF" || text(head, 8) !== "WEBP") return 0;
  const view = new DataView(await file.arrayBuffer());
  try {
    for (let at = 12; at + 8 <= view.byteLength; ) {
      const length = view.getUint32(at + 4, true);
      if (text(view, at) === "EXIF") return tiffOrientation(new DataView(view.buffer, at + 8, length));
      at += 8 + length + (length & 1);
    }
  } catch {
    // a damaged file is upright, as Pillow has it
  }
  return 1;
}

function tiffOrientation(view) {
  const start = text(view, 0) === "Exif" ? 6 : 0;
  const isLittle = view.getUint16(start) === 0x4949;
  const directory = start + view.getUint32(start + 4, isLittle);
  const count = view.getUint16(directory, isLittle);
  for (let entry = directory + 2; entry < directory + 2 + 12 * count; entry += 12) {
    if (view.getUint16(entry, isLittle) !== 0x0112) continue;
    const value = view.getUint16(entry + 8, isLittle);
    return value >= 1 && value <= 8 ? value : 1;
  }
  return 1;
}

function text(view, at) {
  return String.fromCharCode(...[0, 1, 2, 3].map((i) => view.getUint8(at + i)));
}
