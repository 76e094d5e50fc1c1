"""The HTTP/1.1 connection: protocol, admission, middleware, problems and shutdown."""
