"""Visual-token reduction: rules that select the image tokens a decoder computes with."""
