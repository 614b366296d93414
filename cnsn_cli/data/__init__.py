"""From files to batches of pixels.

datasets      where images and labels come from, and the task that they define
image_files   a folder of images, one folder for each class
pixels        from pictures to pixels, and from pixels to the input of a network
split         the images of a split, in memory or read from files during training

This package does not know networks. Random augmentation is in cnsn_cli.training.
"""
