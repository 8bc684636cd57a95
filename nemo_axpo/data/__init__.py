"""Data: images, chat rendering, vocabulary and training samples."""
