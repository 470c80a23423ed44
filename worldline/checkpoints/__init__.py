"""Model folders on disk: the diffusers folder layout, safetensors only, written whole or not at all."""
