"""Captions of pictures: measured, from reports, or by a captioning model."""
