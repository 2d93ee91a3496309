"""Text to token ids and back: training, the codec, and the exactly equal `tokenizer.json`."""
