// Shows an image as the model sees it: upright by its EXIF orientation, the central square, in the model's resolution.

const ASSUMED = { image_size: 224, channels: 3, crop_pct: 1 }; // until a model is known

/** Draw a file on a canvas, and return its {width, height}. Rejects where the browser cannot decode it. */
export async function draw(canvas, file, preprocessing) {
  const { image_size: size, channels, crop_pct: crop } = preprocessing ?? ASSUMED;
  const image = await createImageBitmap(file, { imageOrientation: "from-image" });
  const { width, height } = image;
  const side = crop * Math.min(width, height);
  canvas.width = canvas.height = size;
  canvas.classList.toggle("coarse", size < 96);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: channels === 1 });
  context.imageSmoothingQuality = "high";
  context.drawImage(image, (width - side) / 2, (height - side) / 2, side, side, 0, 0, size, size);
  image.close();
  if (channels === 1) turnGray(context, size);
  return { width, height };
}

/** Say what was drawn. */
export function describe({ width, height }, { image_size: size, channels, crop_pct: crop }) {
  const part = crop < 1 ? `${Number((100 * crop).toFixed(1))} % of the central square` : "the central square";
  const whole = width === height && crop === 1 ? `all of ${width} × ${height}` : `${part} of ${width} × ${height}`;
  return `What the model sees: ${whole}, as ${size} × ${size}${channels === 1 ? " in gray" : ""}`;
}

function turnGray(context, size) {
  const pixels = context.getImageData(0, 0, size, size);
  const data = pixels.data;
  for (let i = 0; i < data.length; i += 4) {
    data.fill(0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2], i, i + 3); // ITU-R 601, as Pillow
  }
  context.putImageData(pixels, 0, 0);
}
