"""From a request to a run folder.

run                 `train` and `resume`: put everything below together
  arguments         the arguments of `train`, listed once
  recipe            hyper-parameters, checked
  recipe_files      the TOML files of recipes: presets, and the user's own
  request           what the user asked of a run, as its state stores it
  setup             network, data and weights before the first step
  data_record       what the data are, to notice other data
  description       what files say about a network before it is trained
  places            where relative names are looked for
  initial_weights   weights to start from
trainer             the training loop, which yields events
  photos            random changes to one photo, while it is read
  augmentation      random changes to training images, a batch at a time
  gradient_balance  how strongly sub-models pull at shared units
  ema               averaged weights
  meter             losses, accuracies and speed of an epoch
  metrics           the events, and the lines of metrics.jsonl
trackers            records of a run in TensorBoard, MLflow and others
recorder            keeps what epochs leave behind, and saves it when it is time
  bundle            models, metrics and state that are written together
  writer_thread     writes bundles while the run trains on
  run_folder        the folder of a run: its lock and its space
  resume_state      everything that a resumed run needs
  signals           Ctrl-C and SIGTERM
  hint              what to try if models learnt nothing
plot                pictures of runs

This package does not know the command line, and does not know what becomes of a model after training.
"""
