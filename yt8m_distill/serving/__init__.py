"""Predictions as CSV and as a SavedModel."""
