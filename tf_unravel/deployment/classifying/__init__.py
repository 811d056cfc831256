"""Images classified with an exported model."""
