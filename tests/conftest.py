import os

import pytest
import torch as th

th.set_num_threads(1)  # tests run side by side


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests on LIBERO's own assets where these are not at hand, and slow ones unless asked for."""
    left_out = []
    if not os.environ.get("SB3_TGRPO_LIBERO_ASSETS"):
        left_out.append("full_assets")
    if "slow" not in (config.getoption("-m") or ""):
        left_out.append("slow")
    deselected = [item for item in items if any(item.get_closest_marker(name) for name in left_out)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]
