"""From video files to features: decoding, image networks, quantized frames."""
