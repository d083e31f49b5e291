"""Frames of videos: selection, decoding, times."""
