"""Networks that classify a video from its frames."""
