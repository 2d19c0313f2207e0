"""Wire protocols of an application: JSON, Arrow, Open Inference Protocol v2, OpenAPI."""
