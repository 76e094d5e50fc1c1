"""Several worker processes on one port, and the parent process that starts them."""
