"""vistok: visual tokenizers for large language models."""
