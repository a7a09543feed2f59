"""
Default settings, each in one place. The paper (arXiv 2506.08440v3) gives the group size and the two weights; the others are
this project's.
"""

GROUP_SIZE = 4
"""N, members of a group (section V-D)."""
ALPHA_STEP = 0.3
"""alpha_1 of eq. (4), weight of the step level (section IV-B)."""
ALPHA_TRAJ = 0.7
"""alpha_2 of eq. (4), weight of the trajectory level (section IV-B)."""
LEARNING_RATE = 1e-5
"""Learning rate, constant (section V-A)."""
CLIP_RANGE = 0.2
"""eps of eq. (6)."""
KL_COEF = 0.04
"""beta of eq. (6)."""
MAX_GRAD_NORM = 1.0
"""Largest norm of the gradient."""
TOTAL_TIMESTEPS = 24_000
"""Steps that count, of ``learn()``."""
