"""The words that users choose from. Recipes, files, options and code share them: each is written once, here.

A new word is added here and where its meaning is implemented. This module does not know what a word means.
"""

from typing import Literal

BatchNormMode = Literal["private", "shared"]
StepDown = Literal["patch", "stem"]
StepDownInit = Literal["random", "fit"]
OptimizerName = Literal["sgd", "adamw", "muon"]
Schedule = Literal["step", "cosine", "linear"]
Crop = Literal["padded", "resized"]
AutoAugment = Literal["none", "trivial", "rand"]
Flip = Literal["none", "random", "alternating"]
Mix = Literal["none", "mixup", "cutmix"]
Teacher = Literal["base", "chain"]
Distill = Literal["none", Teacher]
Precision = Literal["fp32", "bf16"]  # what convs compute with in a training step
Compile = Literal["auto", "on", "off"]
Half = Literal["float16", "bfloat16"]
Quantization = Literal["int8"]
WeightType = Literal["float32", Half, Quantization]  # what weights are stored as in a file
Selection = Literal["test", "validation"]  # the images that choose the best epoch
StartedFrom = Literal["file", "published"]  # the source of the first weights
SplitName = Literal["train", "test"]
ExportFormat = Literal["onnx", "pt2"]
