"""HTTP routes, request and response models, and the OpenAPI document."""
