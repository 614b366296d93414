"""The file format. A file is written as a whole, opened once, and checked before its weights are used.

model_file      any file that holds models, opened as classifiers
checkpoint      saving and loading networks
  agreement     whether a file holds the network that it describes
  metadata      what a file says about its models
  tensor_file   a safetensors file as bytes: header and tensors, without torch
  pieces        tensors and blocks of a file, copied into a new file without torch
  onnx_model    exported ONNX files, run by ONNX Runtime
  onnx_texts    the metadata of ONNX files, without ONNX Runtime
  onnx_limits   what an ONNX file of a stranger may ask for
writer          a file appears complete or not at all
  temporary     SIGTERM leaves no temporary file behind

This package does not know how a network is trained.
"""
