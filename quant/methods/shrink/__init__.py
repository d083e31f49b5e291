"""Structured compression: which MLP channels and decoder layers stay, and the refit of the rest."""
