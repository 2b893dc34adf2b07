"""The hooks of the vllm plugin."""
