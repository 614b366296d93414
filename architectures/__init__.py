"""The built-in backbones. cnsn finds them through entry points, like every other plug-in."""
