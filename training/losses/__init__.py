"""The contrastive losses: InfoNCE, WPCL and CRTR."""
