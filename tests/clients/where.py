"""Where the mesh under test is: what every program that speaks to OpenAI reads from its environment."""

import os

BASE_URL = os.environ["OPENAI_BASE_URL"]
API_KEY = os.environ["OPENAI_API_KEY"]
MODEL = os.environ["MESH_MODEL"]
"""A model by its own name, beside ``auto``."""
