"""The file format. A file is written as a whole, opened once, and checked before its weights are used."""
