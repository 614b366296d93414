"""Records of a run beside its folder: in TensorBoard, MLflow, Weights & Biases, Trackio, or a plug-in.

tracking     opens the trackers of a run, tells them its events, and keeps their errors from the run
installed    finds trackers by name, among the entry points
tensorboard, mlflow, wandb, trackio
             one tracker each; they import their library when a run begins

The package does not know how a run is trained. `tracking` says what a tracker is.
"""
