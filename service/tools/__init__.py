"""Programs that stand beside the server."""
