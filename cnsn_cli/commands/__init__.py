"""One file a command: options in, a library call, a table or JSON out. Heavy imports stay in functions."""
