"""Data: the batch contract, the embedded emoji scenes, and image-text data in tables, streams and tars."""
