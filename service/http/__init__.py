"""The HTTP side of the server: protocol, middleware, errors and routes."""
