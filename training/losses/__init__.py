"""The training losses: InfoNCE, WPCL, CRTR and their combination."""
