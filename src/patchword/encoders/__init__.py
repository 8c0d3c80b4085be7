"""Encoders: timm and Hugging Face backbones as a pair of towers in one space."""
