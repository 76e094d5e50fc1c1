"""The JSON of requests: what it may be, how it is read, and what a client is shown that breaks a rule."""
