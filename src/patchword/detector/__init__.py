"""A detector that is fine-tuned from a trained pair of towers, in the style of OWL-ViT (arXiv 2205.06230).

python -m patchword.detector fit --config configs/detector/scenes.yaml --model.checkpoint CHECKPOINT
"""
