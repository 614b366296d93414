"""From a trained network to files for devices: detached models, exports, model cards."""
