"""Data: the batch contract, the embedded emoji scenes, and folders of images with captions."""
