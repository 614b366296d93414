"""The words that users choose from, each in this one place: recipes, files, options and code share them.

A new word is added here, and where its meaning is written; this module knows no meaning.
"""

from typing import Literal

BatchNormMode = Literal["private", "shared"]
StepDown = Literal["patch", "stem"]
Schedule = Literal["step", "cosine", "linear"]
Flip = Literal["none", "random", "alternating"]
Mix = Literal["none", "mixup", "cutmix"]
Teacher = Literal["base", "chain"]
Distill = Literal["none", Teacher]
Precision = Literal["fp32", "bf16"]  # of the convs in a training step
Half = Literal["float16", "bfloat16"]
WeightType = Literal["float32", Half, "int8"]  # of the weights in a file
Selection = Literal["test", "validation"]  # which images choose the best epoch
StartedFrom = Literal["file", "published"]  # where the first weights came from
SplitName = Literal["train", "test"]
ExportFormat = Literal["onnx", "pt2"]
