"""An exported model over HTTP."""
