"""Images to learn from: data sets as they lie on disk, pixels and augmentation."""
