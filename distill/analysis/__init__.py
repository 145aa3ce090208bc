"""What `sid-distill analyze` computes and shows: a run's course, its loss and its images."""
