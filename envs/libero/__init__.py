"""LIBERO tasks as Gymnasium environments."""
