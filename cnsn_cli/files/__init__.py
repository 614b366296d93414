"""The file format: written whole, read once, checked before it is used."""
