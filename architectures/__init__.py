"""The built-in backbones. They come through the same entry points as anybody's plug-in."""
