"""Samples in tar files, with random access or as a stream."""
