"""Trains several ways to join the tasks under one budget, and reports what joining costs."""
