"""Processors, chat templates and collators: from images and text to tensors."""
