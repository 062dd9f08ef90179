"""FID, KID and inception score of images."""
