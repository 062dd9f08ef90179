// Tiny pictures: between base64, files and canvases.

/** Draw a PNG, given in base64, into a canvas of its size. */
export async function draw(canvas, png) {
  const bitmap = await bitmapOf(png);
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
}

/** The pixels of a PNG, given in base64, as ImageData. */
export async function pixelsOf(png) {
  const bitmap = await bitmapOf(png);
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

/** ImageData as a PNG in base64. */
export async function pngOf(pixels) {
  return base64Of(await canvasOf(pixels).convertToBlob({ type: "image/png" }));
}

/** ImageData on a canvas of its size. */
export function canvasOf(pixels) {
  const canvas = new OffscreenCanvas(pixels.width, pixels.height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** A file or blob in base64. */
export async function base64Of(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const parts = [];
  for (let start = 0; start < bytes.length; start += 0x8000) {
    parts.push(String.fromCharCode(...bytes.subarray(start, start + 0x8000)));
  }
  return btoa(parts.join(""));
}

async function bitmapOf(png) {
  const bytes = Uint8Array.from(atob(png), (character) => character.charCodeAt(0));
  // As they are: no profile of colours may change what the model has drawn.
  return createImageBitmap(new Blob([bytes], { type: "image/png" }), { colorSpaceConversion: "none" });
}
