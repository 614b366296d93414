"""The commands, one file each: options in, a library call, a table or JSON out.

options           options that several commands share
listed            options that are listed elsewhere, as Typer wants them
hyperparameters   the settings of a recipe, as options
help              help texts, in panels
output            tables, JSON and safe text
table             the layout of tables on terminals of any width
waiting           what people see while they wait for a stage of a job
progress          what people see while a network trains

Torch and other heavy libraries are imported inside functions, so that `cnsn --help` is quick. This package
does not know how the work is done.
"""
