"""From files to batches of pixels.

datasets       training and test images, and the task that they define
  sources      where images and labels come from, before they are read
  origin       where a data set is, in the words of the user
  image_folder a folder of images, one folder for each class
  table        a CSV file with a row for each image
  hub_datasets data sets of Hugging Face
  columns      which column has the images, and which one the classes
  image_files  reading one picture of a stranger
  jpeg         JPEGs at the scale that is needed
  truncation   pictures that lack rows
  skipping     images that cannot be read, left out
  split        the images of a split, in memory or read from files during training
views          what is seen of a picture: the middle, or a part that training chooses
pixels         from pictures to pixels, and from pixels to the input of a network

This package does not know networks. Random augmentation is in cnsn_cli.training.
"""
