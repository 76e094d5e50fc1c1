"""How Redis is deployed: one server, a master that Sentinels name, or a cluster."""
