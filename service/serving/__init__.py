"""From a request to its images: models, batches, and engines that are watched. No HTTP."""
