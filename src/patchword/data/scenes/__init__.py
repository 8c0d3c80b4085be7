"""The emoji scenes: generated images, captions and phrases."""

from patchword.data.scenes.scenes import EmojiScenes, SceneDataset

__all__ = ["EmojiScenes", "SceneDataset"]
