"""Environments for TGRPO: groups that start alike and step together, and LIBERO."""

if __name__ != "sb3_tgrpo.envs":
    raise ImportError(f"Import this package as sb3_tgrpo.envs, not as {__name__}: two copies of its classes would not be equal.")
