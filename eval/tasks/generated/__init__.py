"""Texts that models generate: reasoning and answer, repetitions, and their largest length."""
