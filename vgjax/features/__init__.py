"""Columns that are derived from prepared pictures and joined to their rows."""
