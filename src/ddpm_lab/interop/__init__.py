"""Published weights: readers and writers of the file formats of other codebases."""
