"""OpenVLA in plain PyTorch and transformers: model, image pipeline, tokens, and the Stable-Baselines3 policy."""
