"""The groups of the reference at /docs, in its order."""

from typing import Any

IMAGES, MODELS, CLIENT = "images", "models", "client for Python"
OPENAI, OPERATION = "OpenAI's API", "operation"

TAGS: list[dict[str, Any]] = [
    {"name": IMAGES, "description": "Draw images by class and seed."},
    {"name": MODELS, "description": "What is served: classes, inputs, licence and quality."},
    {"name": CLIENT, "description": "The package that Python programs install from this server."},
    {"name": OPENAI, "description": "The same for programs that know only the API of OpenAI."},
    {"name": OPERATION, "description": "Health and metrics, for those who run the server."},
]
"""As the OpenAPI document has them."""
