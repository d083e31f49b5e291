"""Export as GGUF, the format of llama.cpp: a text model and an mmproj file of the vision tower."""
