// Shows an image as the model sees it: upright by its EXIF orientation, the central square, in the model's resolution;
// or all of it, as a dense model does.

import { turn, webpOrientation } from "./orientation.js";

const LARGEST = 768; // side of the preview of a whole image
const ASSUMED = { image_size: 224, channels: 3, crop_pct: 1 }; // until a model is known

/**
 * Draw a file on a canvas, and return its upright width and height, and whether parts are transparent. Rejects where
 * the browser cannot decode it.
 */
export async function draw(canvas, file, preprocessing) {
  const { image_size: size, channels, crop_pct: crop } = preprocessing ?? ASSUMED;
  const webp = await webpOrientation(file);
  const image = await createImageBitmap(file, { imageOrientation: webp ? "none" : "from-image" });
  const { width, height } = image;
  const [across, down] = crop ? Array(2).fill(crop * Math.min(width, height)) : [width, height];
  const scale = crop ? size / across : Math.min(1, LARGEST / Math.max(width, height));
  const drawn = [across, down].map((length) => Math.max(1, Math.round(length * scale)));
  [canvas.width, canvas.height] = webp > 4 ? drawn.toReversed() : drawn;
  canvas.classList.toggle("coarse", Math.max(...drawn) < 96);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  turn(context, canvas, webp || 1);
  context.drawImage(image, (width - across) / 2, (height - down) / 2, across, down, 0, 0, ...drawn);
  image.close();
  const isTransparent = finish(context, channels === 1);
  return webp > 4 ? { width: height, height: width, isTransparent } : { width, height, isTransparent };
}

/** Say what was drawn. */
export function describe({ width, height, isTransparent }, { image_size: size, channels, crop_pct: crop }) {
  const color = channels === 1 ? " in gray" : "";
  const doubt = isTransparent ? "; where it is transparent, the colors beneath, which are black here" : "";
  const part = crop < 1 ? `the inner ${Number((100 * crop).toFixed(1))} % of the central square` : "the central square";
  const whole = crop === 1 && width === height ? "all" : part;
  const words = crop
    ? `What the model sees: ${whole} of ${width} × ${height}, as ${size} × ${size}`
    : `What the model sees: all of ${width} × ${height}`;
  return `${words}${color}${doubt}`.replace(/ (?=[×%])|(?<=×) /g, "\u00a0");
}

/** Make the pixels opaque, and gray where the model is; return whether the color of some is unknown. */
function finish(context, isGray) {
  const pixels = context.getImageData(0, 0, context.canvas.width, context.canvas.height);
  const { data } = pixels;
  let isTransparent = false;
  for (let i = 0; i < data.length; i += 4) {
    isTransparent ||= data[i + 3] === 0; // of less transparent pixels the canvas knows the color
    data[i + 3] = 255;
    if (isGray) data.fill(0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2], i, i + 3); // ITU-R 601, as Pillow
  }
  context.putImageData(pixels, 0, 0);
  return isTransparent;
}
