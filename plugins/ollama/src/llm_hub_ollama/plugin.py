"""The hooks of the ollama plugin."""
