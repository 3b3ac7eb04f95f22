"""Model cards and what is needed to publish a model."""
