"""The hooks of the llamacpp plugin."""
